"""A student's first weights from its teacher's layers."""

from __future__ import annotations

import logging

import pytest
import torch

from pwl_hf import PWLForImageClassification, VGGConfig
from pwl_hf.training.networks.building import fresh, new_student
from pwl_hf.training.networks.inheritance import inherit
from pwl_hf.training.networks.network_arguments import NetworkArguments
from tests.tiny import FAMILIES, tiny_images, tiny_model, tiny_pair


def half_depth(model_type: str, num_stages: int = 4) -> PWLForImageClassification:
    teacher, _ = tiny_pair(model_type)
    torch.manual_seed(0)
    student = new_student(NetworkArguments(teacher="t", student_preset="half-depth"), teacher, None)
    return PWLForImageClassification.from_teacher_student(fresh(teacher), student, num_stages=num_stages).eval()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_module_of_half_the_depth_is_the_teacher_s(model_type):
    model = half_depth(model_type)
    for buffer in model.teacher.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    found = inherit(model)
    assert found.left == ()
    covered = set()
    for own, other in found.copied.items():
        for name, tensor in model.student.get_submodule(own).state_dict().items():
            assert torch.equal(tensor, before[f"{other}.{name}"])
            covered.add(f"{own}.{name}")
    assert covered == set(model.student.state_dict())
    # Copies, not the same tensors: training the student must not change the teacher.
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())


def test_choices_take_the_layers_that_they_say():
    layers = {
        how: [of for own, of in inherit(half_depth("vit", 2), how).copied.items() if ".layers." in own]
        for how in ("spread", "first")
    }
    assert layers == {
        "spread": [f"vit.layers.{i}" for i in (0, 2, 4, 6)],
        "first": [f"vit.layers.{i}" for i in (0, 1, 4, 5)],
    }


@pytest.mark.parametrize("model_type", FAMILIES)
def test_student_as_deep_as_its_teacher_answers_as_it_does(model_type):
    teacher, _ = tiny_pair(model_type)
    model = PWLForImageClassification.from_teacher_student(
        fresh(teacher), fresh(teacher.__class__(**teacher.to_dict()))
    )
    model.eval()
    images = tiny_images(model_type)
    with torch.no_grad():
        assert not torch.equal(model(images, sources="SSSS").logits, model(images, sources="TTTT").logits)
        inherit(model, "first")
        assert torch.equal(model(images, sources="SSSS").logits, model(images, sources="TTTT").logits)


def test_what_does_not_fit_stays_and_is_logged(caplog):
    teacher = VGGConfig(hidden_sizes=[4, 8, 8], depths=[2, 2, 2], num_labels=5)
    student = VGGConfig(hidden_sizes=[6, 8, 8], depths=[1, 2, 2], num_labels=5)
    torch.manual_seed(0)
    model = PWLForImageClassification.from_teacher_student(fresh(teacher), fresh(student), num_stages=3)
    before = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    with caplog.at_level(logging.INFO, "pwl_hf.training"):
        found = inherit(model)
    assert found.left == ("vgg.layers.0", "vgg.layers.1")
    assert found.copied == {
        "vgg.layers.2": "vgg.layers.3",
        "vgg.layers.3": "vgg.layers.4",
        "vgg.layers.4": "vgg.layers.5",
        "classifier": "classifier",
    }
    after = model.student.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith(found.left))
    assert "vgg.layers.2 from vgg.layers.3" in caplog.text
    assert "as they were: vgg.layers.0, vgg.layers.1" in caplog.text


def test_student_of_another_width_is_refused_and_unchanged():
    model = tiny_model("vit")
    before = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    with pytest.raises(ValueError, match=r"no layer of the student has the shapes .* 'vit.layers.0'"):
        inherit(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.student.state_dict().items())


def test_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="must be one of spread, first, got 'last'"):
        inherit(tiny_model("vit"), "last")
