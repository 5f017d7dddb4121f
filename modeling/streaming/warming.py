"""Bringing a block into memory, and paying for its first call, before it is needed."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..families.base import Features, Inputs
from ..routes.route import Route
from ..sources import Sources

# The shape of a block's output, and its token grid.
Shape = tuple[tuple[int, ...], tuple[int, int] | None]


@dataclass(frozen=True)
class Like:
    """A tensor's shape and dtype, to make others like it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def make(self, name: str, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of this shape: of nothing, but a mask, which lets everything through, and sizes, which are 1.

        Args:
            name: The input that it is for.
            device: Where it goes.
            dtype: Its dtype, if it is a floating one.
        """
        own = dtype if self.dtype.is_floating_point else self.dtype
        return torch.full(self.shape, int(name.endswith(("mask", "shapes"))), device=device, dtype=own)


@dataclass(frozen=True)
class Seen:
    """The shapes of the last forward pass, or of the warm-up that came after it.

    Args:
        sources: Its path.
        inputs: What the model was called with, tensors by their likeness.
        outputs: The shape of each block's output; of a warm-up as far as it went.
    """

    sources: Sources
    inputs: Mapping[str, Any]
    outputs: tuple[Shape, ...]

    @classmethod
    def of(cls, sources: Sources, inputs: Inputs, outputs: Sequence[Features]) -> Seen | None:
        """Of a pass that went well: what failed would fail in the warm-up too.

        None if it had other inputs than tensors and plain values: a warm-up would write into a cache that is in use.
        """
        if not all(value is None or isinstance(value, torch.Tensor | str | int | float) for value in inputs.values()):
            return None
        likes = {n: Like(v.shape, v.dtype) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
        return cls(sources, likes, tuple(_shape_of(features) for features in outputs))

    def reaches(self, sources: Sources, block: int) -> bool:
        """Whether it knows what comes out of a block (from 1) on another path, whose blocks up to there are its own."""
        return 0 < block <= len(self.outputs) and self.sources.mask[:block] == sources.mask[:block]


def first_call(route: Route, first: int, last: int, seen: Seen, device: torch.device, dtype: torch.dtype) -> Seen:
    """Call a route's blocks `first` to `last` (from 1) and the converter behind, with inputs of shapes that were seen.

    Where the pass that was seen had other blocks before them, the route's own are called too.

    Args:
        route: The route.
        first: The first new block.
        last: The last new block.
        seen: The last forward pass.
        device: Where the route is.
        dtype: Of the route.

    Returns:
        What was seen of this route now: the next block's warm-up needs none of these again.
    """
    inputs = {n: v.make(n, device, dtype) if isinstance(v, Like) else v for n, v in seen.inputs.items()}
    outputs: list[Shape] = []
    features: Features | None = None
    if seen.reaches(route.sources, first - 1):
        outputs = list(seen.outputs[: first - 1])
        shape, grid = outputs[-1]
        features = Features(torch.zeros(shape, device=device, dtype=dtype), grid)
    for block in range(len(outputs) + 1, last + 1):
        (features,), _ = route.run_block(block, features, inputs)
        outputs.append(_shape_of(features))
    if last < len(route.sources):
        route.convert(last + 1, features)
    return Seen(route.sources, seen.inputs, tuple(outputs))


def _shape_of(features: Features) -> Shape:
    return features.tensor.shape, features.grid


def touch_pages(module: nn.Module) -> None:
    """Read one byte of each memory page under a module's tensors; tensors on other devices have none here.

    Weights in their stored dtype are pages of a mapped file, which come in when they are first read.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.device.type == "cpu" and tensor.numel() > 0 and tensor.is_contiguous():
            pages = tensor.detach().reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE]
            pages.sum()
