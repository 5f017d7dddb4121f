"""A module that is put in another's place answers at once: a route never goes on with what it was built of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pwl_hf import PWLForImageClassification
from tests.tiny import EACH_FAMILY, tiny_images

Load = Callable[..., PWLForImageClassification]


@torch.no_grad()
def shifted(module: nn.Module) -> nn.Module:
    """Another module of the same kind, with other weights."""
    other = type(module).__new__(type(module))
    other.__dict__ = {**module.__dict__, "_parameters": dict(module._parameters)}
    for name, parameter in module._parameters.items():
        other._parameters[name] = None if parameter is None else nn.Parameter(parameter + 0.5)
    return other


def check_that_it_answers(model: PWLForImageClassification, replace: Callable[[], None], **kwargs: str) -> None:
    images = tiny_images(model.config.teacher_config.model_type)
    before = model(images, **kwargs).logits
    replace()
    after = model(images, **kwargs).logits
    assert not torch.equal(after, before)
    # What builds every route from the start.
    assert torch.equal(model.eval()(images, **kwargs).logits, after)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_a_head_that_is_replaced_answers_at_once(load: Load, model_type: str) -> None:
    model = load(model_type)
    head = model.student.classifier
    if isinstance(head, nn.Sequential):
        check_that_it_answers(model, lambda: head.__setitem__(-1, shifted(head[-1])))
    else:
        check_that_it_answers(model, lambda: setattr(model.student, "classifier", shifted(head)))


@torch.no_grad()
def test_a_layer_a_converter_and_a_part_between_that_are_replaced_answer_at_once(load: Load) -> None:
    model = load("vit", stage=1)
    check_that_it_answers(model, lambda: model.encoders.update({"1": shifted(model.encoders["1"])}))

    def replace_a_layer() -> None:
        layer = type(model.student.vit.layers[2])(model.student.config).eval()
        model.student.vit.layers[2] = layer

    check_that_it_answers(model, replace_a_layer)

    def replace_the_layers() -> None:
        layers = [type(layer)(model.student.config).eval() for layer in list(model.student.vit.layers)[1:]]
        model.student.vit.layers = nn.ModuleList([model.student.vit.layers[0], *layers])

    check_that_it_answers(model, replace_the_layers)


@torch.no_grad()
def test_paths_of_other_masks_follow_too(load: Load) -> None:
    model = load("vit", keep_all=True)
    mask = {"sources": "STTS"}
    check_that_it_answers(
        model, lambda: setattr(model.student, "classifier", shifted(model.student.classifier)), **mask
    )
    check_that_it_answers(model, lambda: model.decoders.update({"1": shifted(model.decoders["1"])}), **mask)


@torch.no_grad()
def test_within_blocks_that_have_statistics_of_their_own_too(load: Load) -> None:
    model = load("resnet", stage=1)  # its mask has statistics, so that its blocks are run by stand-ins
    layer = model.student.resnet.encoder.stages[3].layers[0].layer[1]
    check_that_it_answers(model, lambda: setattr(layer, "convolution", shifted(layer.convolution)))


@torch.no_grad()
def test_a_network_that_is_replaced_answers_at_once(load: Load) -> None:
    model, other = load("vit"), load("vit")
    other.student.classifier.bias.data += 1
    check_that_it_answers(model, lambda: setattr(model, "student", other.student))
