"""Students of further types of images that begin as their teacher's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pwl_hf import PWLForImageClassification, Sources
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.training.networks.inheritance import inherit
from tests.modeling.image_types import IMAGES, image_batch
from tests.modeling.test_types import TYPES, given, joined, networks

OF_PATCHES = ["beit", "data2vec-vision", "dinov2_with_registers", "vit_msn", "ijepa", "clip", "siglip"]


@pytest.mark.parametrize("model_type", TYPES[: len(IMAGES)])
@torch.no_grad()
def test_a_student_built_as_its_teacher_answers_as_it_does_on_every_path(model_type: str) -> None:
    model, inputs = joined(model_type, "teacher"), given(model_type)
    expected = model(**inputs, sources="TTT").logits
    assert not torch.allclose(model(**inputs, sources="SSS").logits, expected, rtol=1e-3)
    inherit(model, converters=True)
    # LeViT keeps what it made of its weights until it trains.
    model.train().eval()
    for mask in Sources.all(3):
        torch.testing.assert_close(model(**inputs, sources=str(mask)).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["spread", "first"])
@torch.no_grad()
def test_layers_of_a_deeper_teacher_are_copied_with_what_leads_to_their_level(how: str) -> None:
    teacher, student = networks("pvt_v2", depths=[2, 1, 4, 2])[0], networks("pvt_v2", "teacher", depths=[1, 1, 2, 1])[1]
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_blocks=4)
    found = inherit(model, how, converters=True)
    assert not found.sliced
    other = "pvt_v2.encoder.layers.2.blocks.2" if how == "spread" else "pvt_v2.encoder.layers.2.blocks.1"
    assert found.copied["pvt_v2.encoder.layers.2.blocks.1"] == other
    for path in ("pvt_v2.encoder.layers.1.patch_embedding", "pvt_v2.encoder.layers.3.layer_norm"):
        assert found.copied[path] == path


def half_width(model_type: str) -> PWLForImageClassification:
    narrow: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 8, "num_attention_heads": 2}
    pair = [networks(model_type)[0], networks(model_type, **narrow)[1]]
    return PWLForImageClassification.from_teacher_student(*pair, num_blocks=4).eval()


@pytest.mark.parametrize("model_type", OF_PATCHES)
@torch.no_grad()
def test_a_slice_is_nearer_to_its_teacher_than_a_random_student(model_type: str) -> None:
    model, inputs = half_width(model_type), image_batch(model_type)
    features = model(**inputs, sources="TTTT", output_hidden_states=True).hidden_states

    def missed() -> list[float]:
        own = model(**inputs, sources="SSSS", output_hidden_states=True).hidden_states
        back = [model.decoders[str(number)](own[number - 1]) for number in (1, 2, 3)]
        return [float((found - wanted).square().mean()) for found, wanted in zip(back, features, strict=False)]

    before = missed()
    found = inherit(model, batches=[inputs], converters=True)
    assert found.sliced
    assert all(now < then for now, then in zip(missed(), before, strict=True))


@pytest.mark.parametrize("model_type", ["regnet", "bit", "convnextv2", "swinv2", "mobilenet_v2", "levit"])
def test_a_narrower_student_of_unknown_channels_is_refused_and_unchanged(model_type: str) -> None:
    model = joined(model_type)
    assert not family_of(model_type).tells_channels
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"the names of '{model_type}' do not tell which channels to keep: give a"):
        inherit(model, batches=[given(model_type)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
