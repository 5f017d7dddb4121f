"""Integrated gradients: against the formula, for networks where it is known, and with every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTImageProcessorPil
from transformers.modeling_outputs import ImageClassifierOutput

from pwl_hf.data.digits import image_processor
from pwl_hf.training.images.gradients import fingerprint, integrated_gradients, pixel_range
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model

BLACK = torch.tensor([-1.0, -0.5, 0.25])[:, None, None]
TARGET = torch.tensor([3, 0])


class _Polynomial(nn.Module):
    """logit_k = sum of w_k x + v_k x^2, whose integrated gradients are w_k (x - b) + v_k (x^2 - b^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.square = (nn.Parameter(torch.randn(5, 3, 4, 4)) for _ in range(2))

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        x = pixel_values[:, None]
        return ImageClassifierOutput(logits=(self.linear * x + self.square * x**2).sum((2, 3, 4)))


def test_attributions_of_a_polynomial_are_exact():
    network, images = _Polynomial().eval(), torch.randn(2, 3, 4, 4)
    found = integrated_gradients(network, images, TARGET, BLACK, steps=2)
    exact = network.linear[TARGET] * (images - BLACK) + network.square[TARGET] * (images**2 - BLACK**2)
    torch.testing.assert_close(found, exact.abs().sum(1).detach())


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_attributions_of_a_network_are_the_integral_along_the_line(family):
    teacher, images = tiny_model(family).teacher, tiny_images(family)
    found = integrated_gradients(teacher, images, TARGET, BLACK, steps=3)
    gradient = torch.zeros_like(images)
    for place, weight in zip(*np.polynomial.legendre.leggauss(3), strict=True):
        at = (BLACK + float(place + 1) / 2 * (images - BLACK)).requires_grad_()
        logits = teacher(at).logits[torch.arange(2), TARGET]
        gradient += float(weight) / 2 * torch.autograd.grad(logits.sum(), at)[0]
    expected = (gradient * (images - BLACK)).abs().sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert found.shape == images[:, 0].shape


def test_pass_size_plays_no_part():
    teacher, images = tiny_model("vit").teacher, tiny_images("vit", 5)
    target = torch.tensor([0, 1, 2, 3, 4])
    whole = integrated_gradients(teacher, images, target, BLACK, steps=6, internal_batch_size=1000)
    for size in (2, 5, 7):
        parts = integrated_gradients(teacher, images, target, BLACK, steps=6, internal_batch_size=size)
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_network_is_left_as_it_is():
    model, images = tiny_model("resnet").train(), tiny_images("resnet")
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    with torch.no_grad():
        integrated_gradients(model.teacher, images, TARGET, BLACK, steps=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="of a network in eval mode"):
        integrated_gradients(tiny_model("vit").student.train(), tiny_images("vit"), TARGET, BLACK)


def test_pixel_range_is_what_the_processor_makes_of_black_and_white():
    black, white = pixel_range(image_processor())
    torch.testing.assert_close(black.flatten(), torch.full((3,), -1.0))
    torch.testing.assert_close(white.flatten(), torch.full((3,), 1.0))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=mean, image_std=std)
    black, white = pixel_range(processor)
    assert black.shape == (3, 1, 1)
    torch.testing.assert_close(black.flatten(), torch.tensor([-2.5, -4 / 3, -3.0]))
    torch.testing.assert_close(white.flatten(), torch.tensor([2.5, 2.0, 7.0]))


def test_processor_without_a_constant_black_is_refused():
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    make = processor.__call__

    class _Graded(ViTImageProcessorPil):
        def __call__(self, *args, **kwargs):
            out = make(*args, **kwargs)
            out["pixel_values"] = out["pixel_values"] + torch.linspace(0, 1, 8)
            return out

    with pytest.raises(ValueError, match=r"_Graded does not make an image of one value .* set ig_probability to 0"):
        pixel_range(_Graded(size={"height": 8, "width": 8}))


def test_fingerprint_is_of_names_and_values_and_nothing_else():
    network = tiny_model("vit").teacher
    first = fingerprint(network)
    assert fingerprint(tiny_model("vit").teacher) == first
    assert fingerprint(tiny_model("vit", seed=1).teacher) != first
    with torch.no_grad():
        network.classifier.bias[0] += 1e-6
    assert fingerprint(network) != first
    assert fingerprint(tiny_model("vit").teacher.bfloat16()) != first
