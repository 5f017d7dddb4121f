"""Losses against their formulas, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pwl_hf.training.objective.losses import distillation_loss, feature_distance, hard_loss, soft_loss

# Odds of 3 to 1 and of 1 to 1.
LOGITS = torch.tensor([[math.log(3.0), 0.0]])
EVEN = torch.zeros(1, 2)
KL_OF_LOGITS = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)


def test_hard_loss_is_minus_the_log_probability_of_the_label():
    labels = torch.tensor([0, 1])
    expected = -(math.log(0.75) + math.log(0.25)) / 2
    assert hard_loss(LOGITS.repeat(2, 1), labels).item() == pytest.approx(expected)


def test_soft_loss_is_the_divergence_from_the_teacher_to_the_student():
    assert soft_loss(EVEN, LOGITS, 1.0).item() == pytest.approx(KL_OF_LOGITS)
    backwards = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert soft_loss(LOGITS, EVEN, 1.0).item() == pytest.approx(backwards)


def test_soft_loss_divides_logits_by_the_temperature_and_multiplies_by_its_square():
    assert soft_loss(EVEN, 2 * LOGITS, 2.0).item() == pytest.approx(4 * KL_OF_LOGITS)


def test_soft_loss_is_the_mean_over_images():
    one, three = soft_loss(EVEN, LOGITS, 2.0), soft_loss(EVEN.repeat(3, 1), LOGITS.repeat(3, 1), 2.0)
    torch.testing.assert_close(one, three)


def test_soft_loss_gives_the_teacher_no_gradient():
    student, teacher = EVEN.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    soft_loss(student, teacher, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_distillation_loss_weighs_labels_by_alpha():
    labels = torch.tensor([0])
    expected = 0.4 * math.log(2) + 0.6 * KL_OF_LOGITS
    assert distillation_loss(EVEN, labels, LOGITS, alpha=0.4, temperature=1.0).item() == pytest.approx(expected)


def test_feature_distance_is_squared_error_plus_one_minus_cosine():
    a, b = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]]), torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    # Errors (1 + 1 + 1 + 0) / 4; cosines 0 and 1.
    assert feature_distance(a, b).item() == pytest.approx(0.75 + 0.5)


def test_feature_distance_of_equal_features_is_zero():
    features = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert feature_distance(features, features).item() == pytest.approx(0, abs=1e-6)
