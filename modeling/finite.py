"""Batches of a model's inputs, and whether weights and inputs are finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

# What a model is called with, by name, or its main input alone.
Batch = torch.Tensor | Mapping[str, Any]
# One batch, or several.
Batches = Batch | Iterable[Batch]


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; None if there is none.

    Args:
        tensors: By name. Whole numbers and tensors without values (`meta`) are passed over.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def by_name(batch: Batch, main_input: str) -> dict[str, Any]:
    """A batch by the names of its inputs.

    Args:
        batch: The batch.
        main_input: What a batch that is a tensor is called.
    """
    return dict(batch) if isinstance(batch, Mapping) else {main_input: batch}


def batches_of(inputs: Batches, main_input: str) -> Iterator[dict[str, Any]]:
    """Batches of inputs by name, one or several; empty ones are left out.

    Args:
        inputs: The batches.
        main_input: What a batch that is a tensor is called.

    Raises:
        ValueError: At a batch with a NaN or an infinity in it, or without the main input.
    """
    batches = [inputs] if isinstance(inputs, torch.Tensor | Mapping) else inputs
    for number, batch in enumerate(batches):
        named = by_name(batch, main_input)
        tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
        if (name := first_not_finite(tensors.items())) is not None:
            raise ValueError(f"batch {number} (from 0) holds NaN or infinity in {name}: leave such samples out")
        if count_of(named, main_input):
            yield named


def count_of(inputs: Mapping[str, Any], main_input: str) -> int:
    """How many samples a batch has.

    Raises:
        ValueError: If it lacks the main input.
    """
    if main_input not in inputs:
        raise ValueError(
            f"a batch must have the model's main input, {main_input!r}; it has {', '.join(inputs) or 'none'}"
        )
    return len(inputs[main_input])


def on_device(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The inputs of a batch with their tensors on a device."""
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in inputs.items()}
