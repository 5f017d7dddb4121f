"""BatchNorm statistics: the same in every process, and of their own for the masks that they help.

Notation: B images of C channels, H x W pixels; n images in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.finite import Batch, by_name, count_of, on_device
from pwl_hf.modeling.routes.batchnorm import batch_norms
from pwl_hf.training.objective.masks import mixed_masks


@torch.no_grad()
def average_statistics(network: nn.Module, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Give every process the mean of all processes' running statistics, in place; all must call it together.

    A running statistic is a linear function of the batches' statistics, so the means at the end are those of all
    images seen, at whatever steps they were taken in between. Only what each process normalises by in a training
    step is its own batch's, as always under DDP.

    Args:
        network: Whose BatchNorms.
        mean: The mean of a tensor over all processes.
    """
    buffers = [
        buffer
        for _, module in batch_norms(network, "")
        for buffer in (module.running_mean, module.running_var)
        if isinstance(buffer, torch.Tensor)
    ]
    if not buffers:
        return
    # One message rather than one for each.
    found = mean(torch.cat([buffer.double().reshape(-1) for buffer in buffers]))
    for buffer, values in zip(buffers, found.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


@dataclass(frozen=True)
class MaskChoice:
    """What was measured of a mask on images that were not estimated from.

    Args:
        shared: Mean cross entropy with the networks' own statistics.
        own: Mean cross entropy with statistics estimated for the mask.
    """

    shared: float
    own: float

    @property
    def keeps_own(self) -> bool:
        """Whether the mask keeps its own."""
        return self.own < self.shared


@torch.no_grad()
def select_statistics(
    model: PWLPreTrainedModel,
    batches: Iterable[Batch],
    labels: torch.Tensor,
    masks: Sequence[str] | None = None,
    *,
    held_out: float = 0.5,
) -> dict[str, MaskChoice]:
    """Estimate BatchNorm statistics for each mask, and keep them where they measure better.

    Batches are told apart: those at the end are measured on and play no part in the first estimate. A mask keeps
    statistics of its own if the cross entropy is lower with them: it tells more than the count of right answers, which
    on some hundred images is off by points. What is kept is then estimated again, from all images.

    The model ends in the mode that it was in; networks, converters and other masks' statistics stay as they are.

    Args:
        model: A model with everything resident.
        batches: Training samples, not augmented; at least two batches, as in `fit_converters`. They are kept in memory.
        labels: (n,), int64, of all samples in order.
        masks: The masks; all that take blocks of both networks by default.
        held_out: The part of the images that is measured on, at the least; whole batches are taken.

    Returns:
        What was measured, by mask; empty for networks without BatchNorm.

    Raises:
        ValueError: If there are fewer than two batches, or not one label for each image.
    """
    samples = [by_name(batch, model.main_input_name) for batch in batches]
    sizes = [count_of(batch, model.main_input_name) for batch in samples]
    if len(samples) < 2:
        raise ValueError(
            f"select_statistics needs at least two batches, to estimate and to measure, got {len(samples)}"
        )
    count = sum(sizes)
    if labels.shape != (count,):
        raise ValueError(f"labels must be one for each of the {count} samples, got a tensor of {tuple(labels.shape)}")
    if not any(True for _ in batch_norms(model.student, "student")) and not any(
        True for _ in batch_norms(model.teacher, "teacher")
    ):
        return {}
    if masks is None:
        masks = mixed_masks(model.num_blocks)
    # 1. What is estimated from, and what is measured on.
    first = _first_measured(sizes, held_out)
    estimated, measured = samples[:first], samples[first:]
    right_labels = labels[sum(sizes[:first]) :].to(model.device).split(sizes[first:])
    was_training = model.training
    model.eval()
    try:
        # 2. Each mask without statistics of its own, and with them.
        for mask in masks:
            model.discard_statistics(mask)
        shared = _cross_entropies(model, measured, right_labels, masks)
        model.estimate_statistics(estimated, masks)
        own = _cross_entropies(model, measured, right_labels, masks)
        chosen = {mask: MaskChoice(shared[mask], own[mask]) for mask in masks}
        # 3. What is better is kept, and estimated from all samples.
        model.estimate_statistics(samples, [mask for mask, choice in chosen.items() if choice.keeps_own])
        for mask, choice in chosen.items():
            if not choice.keeps_own:
                model.discard_statistics(mask)
    finally:
        model.train(was_training)
    return chosen


def _first_measured(sizes: Sequence[int], held_out: float) -> int:
    """The first batch of those that are measured on: as many as needed, and one is left to estimate from."""
    wanted, first = held_out * sum(sizes), len(sizes)
    while first > 1 and sum(sizes[first:]) < max(wanted, 1):
        first -= 1
    return first


def _cross_entropies(
    model: PWLPreTrainedModel,
    batches: Sequence[dict[str, Any]],
    labels: Sequence[torch.Tensor],
    masks: Sequence[str],
) -> dict[str, float]:
    """The mean cross entropy of all samples, by mask, of batches and their labels."""
    found = dict.fromkeys(masks, 0.0)
    for batch, wanted in zip(batches, labels, strict=True):
        paths = model.shared_paths(on_device(batch, model.device))
        for mask in masks:
            found[mask] += functional.cross_entropy(paths(mask).logits.float(), wanted, reduction="sum").item()
    count = sum(len(wanted) for wanted in labels)
    return {mask: total / count for mask, total in found.items()}
