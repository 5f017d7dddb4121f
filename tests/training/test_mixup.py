"""Mixup: by the formula, alike in every order of a batch, and only while training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pwl_hf.training.images.mixup import Mixup
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.losses import hard_loss
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from tests.tiny import NUM_LABELS, tiny_images, tiny_model

IDS = torch.tensor([7, 3, 11, 200])
LABELS = torch.tensor([0, 3, 1, 2])


def _mix(mixup: Mixup, images: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor | None = None, step: int = 5):
    return mixup(images, labels, ids, num_labels=NUM_LABELS, seed=1, step=step)


def test_images_and_labels_are_mixed_by_the_same_parts():
    images = torch.rand(4, 3, 2, 2)
    mixup = Mixup(0.7)
    mixed, targets = _mix(mixup, images, IDS, LABELS)
    kept, other = mixup.draw(IDS, 1, 5)
    assert sorted(other.tolist()) == [0, 1, 2, 3]
    assert all(int(j) != i for i, j in enumerate(other))
    for i, j in enumerate(other.tolist()):
        part = float(kept[i])
        torch.testing.assert_close(mixed[i], part * images[i] + (1 - part) * images[j])
        expected = torch.zeros(NUM_LABELS)
        expected[LABELS[i]], expected[LABELS[j]] = part, 1 - part
        torch.testing.assert_close(targets[i], expected)


def test_parts_follow_the_beta_distribution():
    kept, _ = Mixup(0.4).draw(torch.arange(20000), 0, 0)
    # Of Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)).
    assert kept.mean().item() == pytest.approx(0.5, abs=0.01)
    assert kept.var().item() == pytest.approx(1 / 7.2, abs=0.003)


def test_only_the_asked_part_is_mixed():
    kept, _ = Mixup(1.0, probability=0.1).draw(torch.arange(20000), 0, 0)
    assert (kept < 1).float().mean().item() == pytest.approx(0.1, abs=0.01)


def test_parts_belong_to_the_image_and_the_step():
    shuffled = torch.tensor([2, 0, 3, 1])
    kept, _ = Mixup(1.0).draw(IDS, 1, 5)
    assert torch.equal(Mixup(1.0).draw(IDS[shuffled], 1, 5)[0], kept[shuffled])
    assert not torch.equal(Mixup(1.0).draw(IDS, 1, 6)[0], kept)
    assert not torch.equal(Mixup(1.0).draw(IDS, 2, 5)[0], kept)


def test_one_image_stays_and_images_without_labels_are_mixed():
    images = torch.rand(4, 3, 2, 2)
    assert torch.equal(_mix(Mixup(1.0), images[:1], IDS[:1])[0], images[:1])
    mixed, targets = _mix(Mixup(1.0), images, IDS)
    assert targets is None
    assert torch.equal(mixed, _mix(Mixup(1.0), images, IDS, LABELS)[0])


def test_without_ids_it_raises():
    objective = build_objective(tiny_model("vit"), ObjectiveArguments(mixup_alpha=1.0)).train()
    with pytest.raises(ValueError, match="mixup draws by sample_ids, but the batch has none"):
        objective(tiny_images("vit", 4), LABELS)


def test_hard_loss_of_probabilities_is_the_mixture_of_the_two_labels_losses():
    logits, other = torch.randn(4, NUM_LABELS), LABELS.roll(1)
    targets = 0.3 * functional.one_hot(LABELS, NUM_LABELS) + 0.7 * functional.one_hot(other, NUM_LABELS)
    expected = 0.3 * hard_loss(logits, LABELS) + 0.7 * hard_loss(logits, other)
    torch.testing.assert_close(hard_loss(logits, targets), expected)


def test_objective_mixes_while_training_only():
    model, images = tiny_model("vit"), tiny_images("vit", 4)
    plain = build_objective(model, ObjectiveArguments(), seed=1)
    mixing = build_objective(model, ObjectiveArguments(mixup_alpha=1.0, mixup_probability=0.9), seed=1)
    assert torch.equal(mixing.eval()(images, LABELS, 5, IDS)["loss"], plain.eval()(images, LABELS, 5, IDS)["loss"])
    mixed = _mix(Mixup(1.0, 0.9), images, IDS, LABELS)
    torch.testing.assert_close(mixing.train()(images, LABELS, 5, IDS), plain.train()(*mixed, 5, IDS))
    assert not torch.equal(mixed[0], images)


@pytest.mark.parametrize("alpha", [0, -1, float("inf"), float("nan")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match="mixup_alpha must be positive and finite"):
        ObjectiveArguments(mixup_alpha=alpha)
