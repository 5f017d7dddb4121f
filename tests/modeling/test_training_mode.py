"""Training leaves the teacher alone, and mixed passes leave the student's own BatchNorm statistics alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from pwl_hf import PWLForImageClassification, Sources
from tests.tiny import WITH_BATCH_NORM, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]
MASKS = [str(mask) for mask in Sources.all(4)]


@contextmanager
def unchanged(module: nn.Module, *, buffers_only: bool = False) -> Iterator[None]:
    def tensors() -> dict[str, torch.Tensor]:
        return dict(module.named_buffers() if buffers_only else module.state_dict())

    before = {name: t.clone() for name, t in tensors().items()}
    assert before
    yield
    for name, tensor in tensors().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
@pytest.mark.parametrize("with_statistics", [False, True])
def test_training_with_every_mask_leaves_every_bit_of_the_teacher(model_type: str, with_statistics: bool) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 4)
    if with_statistics:
        model.estimate_statistics(images, "TTSS")
        model.estimate_statistics(images, "STTS")
    before = {name: t.clone() for name, t in model.teacher.state_dict().items()}
    student = {name: t.clone() for name, t in model.student.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for step in range(2):
        model.train()
        for mask in MASKS:
            model(images, labels=torch.tensor([0, 1, 2, 3]), sources=mask).loss.backward() if "S" in mask else None
        optimizer.step()
        optimizer.zero_grad()
        model.set_stage(step + 1)
        model(images)
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert any(not torch.equal(t, student[n]) for n, t in model.student.state_dict().items())


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_no_mode_change_ever_puts_a_teacher_module_into_training_mode(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(model_type)
    teacher = {id(module) for module in model.teacher.modules()}
    plain, seen = nn.Module.__setattr__, []

    def watch(self: nn.Module, name: str, value: object) -> None:
        if name == "training" and value and id(self) in teacher:
            seen.append(type(self).__name__)
        plain(self, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", watch)
    wrapper = nn.Sequential(model)
    wrapper.train()
    model.train()
    model.train(True)
    model.eval()
    model.train()
    assert seen == []
    assert model.student.training
    assert not model.teacher.training


def test_the_teacher_answers_alike_in_both_modes() -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet")
    model.set_stage("teacher")
    expected = model(images).logits
    model.train()
    assert model.training
    assert torch.equal(model(images).logits, expected)


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
@pytest.mark.parametrize("mask", [mask for mask in MASKS if len(set(mask)) == 2])
def test_mixed_passes_leave_the_students_own_statistics_alone(model_type: str, mask: str) -> None:
    model, images = tiny_model(model_type).train(), tiny_images(model_type, 4)
    with unchanged(model, buffers_only=True):
        model(images, sources=mask)
        model.set_sources(mask)
        model(images)


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_the_students_own_pass_updates_its_statistics(model_type: str) -> None:
    model, images = tiny_model(model_type).train(), tiny_images(model_type, 4)
    plain = tiny_model(model_type).student.train()
    expected = plain(images).logits
    assert torch.equal(model(images).logits, expected)
    for name, buffer in model.student.named_buffers():
        assert torch.equal(buffer, plain.get_buffer(name)), name
    assert model.student.get_buffer(name).item() == 8, "num_batches_tracked"


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_mixed_passes_in_training_use_the_statistics_of_the_batch(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 4)
    in_eval = model(images, sources="TTSS").logits
    model.train()
    in_training = model(images, sources="TTSS").logits
    assert not torch.equal(in_eval, in_training)
    assert torch.equal(model(images, sources="TTSS").logits, in_training), "no state from pass to pass"
    model.eval()
    assert torch.equal(model(images, sources="TTSS").logits, in_eval)


def test_gradients_of_mixed_passes_reach_student_and_converters_through_teacher_blocks() -> None:
    model, images = tiny_model("resnet").train(), tiny_images("resnet", 4)
    model(images, labels=torch.tensor([0, 1, 2, 3]), sources="STTS").loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"decoders.1.weight", "encoders.3.bias", "student.classifier.1.weight"} <= with_gradient
    assert any(name.startswith("student.resnet.embedder") for name in with_gradient)
    assert not any(name.startswith("teacher.") for name in with_gradient)


def test_all_paths_in_one_backward_give_the_sum_of_their_gradients() -> None:
    model, images = tiny_model("vit").train(), tiny_images("vit")
    labels, masks = torch.tensor([0, 1]), ["SSSS", "TSSS", "STTS"]
    separate: dict[str, torch.Tensor] = {}
    for mask in masks:
        model.zero_grad()
        model(images, labels=labels, sources=mask).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                separate[name] = separate.get(name, 0) + parameter.grad
    model.zero_grad()
    torch.stack([model(images, labels=labels, sources=mask).loss for mask in masks]).sum().backward()
    for name, gradient in separate.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_a_resident_models_training_survives_changes_of_stage() -> None:
    model, images = tiny_model("vit").train(), tiny_images("vit")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    trained = model.eval()(images).logits
    for stage in (2, "teacher", 0):
        model.set_stage(stage)
    assert torch.equal(model(images).logits, trained)
