"""Attention transfer: maps and distances by hand, over the ends of blocks."""

from __future__ import annotations

import pytest
import torch

from pwl_hf.training.objective.attention import attention_distance, attention_map
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model


def test_map_is_the_mean_square_over_channels_at_length_one():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # one image, two channels, two places
    expected = torch.tensor([[5.0, 10.0]]) / 125**0.5
    torch.testing.assert_close(attention_map(features), expected)
    torch.testing.assert_close(attention_map(features.flatten(2).transpose(1, 2)), expected)  # the same as tokens


def test_map_in_half_precision_does_not_overflow():
    features = torch.full((1, 2, 3, 3), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(attention_map(features), torch.full((1, 9), 1 / 3))


def test_distance_is_the_mean_squared_difference_whatever_the_widths():
    features, target = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0, 0.0], [7.0, 1.0]]])
    assert attention_distance(features, target) == 1.0  # (1, 0) against (0, 1)
    assert attention_distance(3 * features, features) == 0.0


def test_distance_sends_no_gradient_into_the_target():
    features, target = (torch.rand(2, 3, 4, requires_grad=True) for _ in range(2))
    attention_distance(features, target).backward()
    assert features.grad is not None
    assert target.grad is None


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5, 6)])
def test_features_of_other_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\) or \(B, L, C\), got"):
        attention_map(torch.ones(shape))


def test_other_places_are_refused():
    with pytest.raises(ValueError, match=r"the same places: got features \(1, 4, 2\) and \(1, 5, 2\)"):
        attention_distance(torch.ones(1, 4, 2), torch.ones(1, 5, 2))


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_term_is_the_mean_over_the_ends_of_the_blocks(family):
    model, images = tiny_model(family), tiny_images(family)
    options = ObjectiveArguments(alpha=0.0, attention_weight=0.8, attention_blocks=[1, 3])
    found = build_objective(model, options)(images)
    plain = build_objective(model, ObjectiveArguments(alpha=0.0))(images)

    def by_hand(block: int) -> torch.Tensor:
        maps = []
        for mask in ("TTTT", "SSSS"):
            features = model(images, sources=mask, output_hidden_states=True).hidden_states[block - 1]
            power = features.square().mean(1 if features.ndim == 4 else 2).flatten(1)
            maps.append(power / power.square().sum(1, keepdim=True).sqrt())
        return (maps[0] - maps[1]).square().mean()

    expected = (by_hand(1) + by_hand(3)) / 2
    assert expected > 0
    torch.testing.assert_close(found["attention"], expected)
    torch.testing.assert_close(found["loss"], plain["loss"] + 0.8 * expected)
    every = build_objective(model, ObjectiveArguments(alpha=0.0, attention_weight=1.0))(images)["attention"]
    torch.testing.assert_close(every, torch.stack([by_hand(i) for i in (1, 2, 3, 4)]).mean())


@pytest.mark.parametrize("block", [0, 5, -1])
def test_blocks_that_do_not_exist_are_refused(block):
    options = ObjectiveArguments(attention_weight=1.0, attention_blocks=[1, block])
    with pytest.raises(ValueError, match=f"attention_blocks must be from 1 to 4, the number of blocks, got {block}"):
        build_objective(tiny_model("vit"), options)
