"""What a step minimises, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import TensorDataset

from pwl_hf import PWLForImageClassification
from pwl_hf.data.digits import image_processor, load_splits, to_tensor
from pwl_hf.training.arguments import DigitsArguments
from pwl_hf.training.loop import fit, parameter_groups
from pwl_hf.training.losses import distillation_loss, feature_distance
from pwl_hf.training.masks import sample_mask
from pwl_hf.training.networks import new_student, new_teacher
from pwl_hf.training.objective import Distillation, Weights
from tests.tiny import tiny_images, tiny_model

LABELS = torch.tensor([0, 3, 1, 2])
WEIGHTS = Weights(alpha=0.3, temperature=3.0, prefix=0.5, mask=0.25, features=0.125)


def test_loss_is_the_weighted_sum_of_its_terms():
    model, images = tiny_model("vit"), tiny_images("vit", 4)
    found = Distillation(model, WEIGHTS, seed=5)(images, LABELS, step=7)

    teacher = model(images, sources="TTTT", output_hidden_states=True)
    student = model(images, sources="SSSS", output_hidden_states=True)

    def path(mask: str) -> torch.Tensor:
        return distillation_loss(model(images, sources=mask).logits, LABELS, teacher.logits, 0.3, 3.0)

    features = torch.zeros(())
    for i in (1, 2, 3):
        t, s = teacher.hidden_states[i - 1], student.hidden_states[i - 1]
        encode, decode = model.encoders[str(i)], model.decoders[str(i)]
        features = features + feature_distance(encode(t), s) + feature_distance(decode(s), t)
        features = features + feature_distance(decode(encode(t)), t) + feature_distance(encode(decode(s)), s)
    expected = {
        "student": path("SSSS"),
        "prefix": (path("TSSS") + path("TTSS") + path("TTTS")) / 3,
        "mask": path(sample_mask(4, 5, 7)),
        "features": features / 3,
    }
    weighted = zip((1, 0.5, 0.25, 0.125), expected.values(), strict=True)
    expected["loss"] = torch.stack([weight * term for weight, term in weighted]).sum()
    torch.testing.assert_close(found, expected)
    assert found["loss"].requires_grad
    assert not any(found[name].requires_grad for name in found if name != "loss")


def test_terms_of_no_weight_are_left_out():
    weights = Weights(prefix=0, mask=0, features=0)
    found = Distillation(tiny_model("vit"), weights, seed=0)(tiny_images("vit", 4), LABELS, step=0)
    assert set(found) == {"loss", "student"}
    assert found["loss"] == found["student"]


def test_one_block_has_the_student_alone():
    model = tiny_model("vit", num_stages=1)
    found = Distillation(model, WEIGHTS, seed=0)(tiny_images("vit", 4), LABELS, step=0)
    assert set(found) == {"loss", "student"}
    assert len(parameter_groups(model, DigitsArguments(output_dir="unused"))) == 1


def test_every_parameter_but_the_teachers_learns():
    model = tiny_model("vit").train()
    objective = Distillation(model, WEIGHTS, seed=0)
    objective(tiny_images("vit", 4), LABELS, step=0)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_training_leaves_all_tensors_of_the_teacher_bit_identical(family):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = DigitsArguments(output_dir="unused", max_steps=4, batch_size=2, disable_tqdm=True)
    data = TensorDataset(tiny_images(family, 4), LABELS)
    fit(
        Accelerator(),
        Distillation(model, WEIGHTS, seed=0),
        parameter_groups(model, arguments),
        data,
        epochs=2,
        arguments=arguments,
        title="test",
    )
    after = model.state_dict()
    teacher = [name for name in before if name.startswith("teacher.")]
    assert any("running" in name for name in teacher) == (family == "resnet")
    for name in before:
        assert torch.equal(before[name], after[name].cpu()) == name.startswith("teacher."), name
    assert not model.training


def test_training_lowers_the_loss_of_every_path():
    size = {"teacher_layers": 2, "teacher_width": 16, "student_layers": 2, "student_width": 16}
    arguments = DigitsArguments(output_dir="unused", batch_size=16, learning_rate=0.01, disable_tqdm=True, **size)
    torch.manual_seed(0)
    teacher = new_teacher(arguments)
    student = new_student(arguments, teacher.config, teacher.device)
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_stages=2)
    # An untrained teacher has nothing to say: labels alone.
    objective = Distillation(model, Weights(alpha=1.0), seed=0)
    digits = load_splits()[0]
    images, labels = to_tensor(digits.images[:64], image_processor()), torch.tensor(digits.labels[:64])

    def losses() -> dict[str, float]:
        with torch.no_grad():
            return {name: value.item() for name, value in objective.eval()(images, labels, step=0).items()}

    before = losses()
    groups, data = parameter_groups(model, arguments), TensorDataset(images, labels)
    fit(Accelerator(), objective, groups, data, epochs=40, arguments=arguments, title="test")
    after = losses()
    assert after.keys() == {"loss", "student", "prefix", "mask"}
    for name in after:
        assert after[name] < 0.8 * before[name], name


def test_converters_have_their_own_learning_rate():
    model = tiny_model("vit")
    arguments = DigitsArguments(output_dir="unused", learning_rate=0.01, converter_lr_scale=0.5)
    student, converters = parameter_groups(model, arguments)
    assert (student["lr"], converters["lr"]) == (0.01, 0.005)
    assert len(student["params"]) == len(list(model.student.parameters()))
    assert len(converters["params"]) == 12
