"""A block as a module of its own: tensors in, tensors out, along any route, and for torch.export."""

from __future__ import annotations

import pytest
import torch

from pwl_hf import StageError
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model


@pytest.mark.parametrize("mask", ["SSSS", "TTTT", "TTSS"])
@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_blocks_and_converters_in_order_are_the_model(model_type: str, mask: str) -> None:
    model, features = tiny_model(model_type), tiny_images(model_type)
    expected = model(features, sources=mask, output_hidden_states=True)
    for number in range(1, 5):
        if number > 1 and mask[number - 2 : number] == "TS":
            features = model.encoders[str(number - 1)](features)
        features = model.block(number, mask)(features)
        if number < 4:
            assert torch.equal(features, expected.hidden_states[number - 1])
    assert torch.equal(features, expected.logits)


@pytest.mark.parametrize("model_type", ["vit", "swin", "resnet"])
@torch.no_grad()
def test_a_block_can_be_exported(model_type: str) -> None:
    model = tiny_model(model_type)
    features = tiny_images(model_type)
    for number in (1, 2, 3, 4):
        block = model.block(number)
        exported = torch.export.export(block, (features,)).module()
        assert torch.equal(exported(features), block(features))
        features = block(features)


@torch.no_grad()
def test_a_block_has_the_statistics_of_its_mask() -> None:
    model = tiny_model("resnet")
    model.estimate_statistics(tiny_images("resnet", 8), "TTSS")
    own, plain = model.block(3, "TTSS"), model.block(3, "SSSS")
    features = model(tiny_images("resnet"), sources="TTSS", output_hidden_states=True).hidden_states[1]
    features = model.encoders["2"](features)
    assert not torch.equal(own(features), plain(features))
    assert {id(p) for p in own.parameters()} == {id(p) for p in plain.parameters()}


def test_its_parameters_are_the_models_own() -> None:
    model = tiny_model("vit")
    blocks = [model.block(number, "TTTT") for number in range(1, 5)]
    own = [id(parameter) for block in blocks for parameter in block.parameters()]
    assert sorted(own) == sorted(id(parameter) for parameter in model.teacher.parameters())


def test_a_block_of_the_teacher_stays_in_eval_mode() -> None:
    model = tiny_model("resnet")
    for mask, trains in (("TTTT", False), ("SSSS", True)):
        block = model.block(2, mask)
        assert not block.training
        block.train()
        assert {module.training for module in block.modules()} >= {trains}
    assert not any(module.training for module in model.teacher.modules())
    assert model.train().block(2, "SSSS").training


def test_a_block_that_is_not_there_is_refused(tmp_path) -> None:
    model = tiny_model("vit")
    for number in (0, 5, "1", 1.0, True, None):
        with pytest.raises(ValueError, match=f"blocks are numbered from 1 to 4, got {number!r}"):
            model.block(number)
    model.save_pretrained(tmp_path)
    with pytest.raises(StageError, match="needs teacher block 1, which is not resident"):
        type(model).from_pretrained(tmp_path).block(2, "TTTT")
