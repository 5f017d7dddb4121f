"""Bringing a block into memory, and paying for its first call, before it is needed."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from ..families.base import Features
from ..sources import Sources

if TYPE_CHECKING:
    from ..routes.route import Route


class Seen(NamedTuple):
    """The shapes of the last forward pass, or of the warm-up that came after it.

    Args:
        sources: Its path.
        images: The shape of the images.
        interpolate: As in `forward`.
        outputs: The shape of each block's output, and its token grid; of a warm-up as far as it went.
    """

    sources: Sources
    images: tuple[int, ...]
    interpolate: bool | None
    outputs: tuple[tuple[tuple[int, ...], tuple[int, int] | None], ...]

    @classmethod
    def of(
        cls, sources: Sources, pixel_values: torch.Tensor, interpolate: bool | None, outputs: Sequence[Features]
    ) -> Seen:
        """Of a pass that went well: what failed would fail in the warm-up too."""
        return cls(sources, pixel_values.shape, interpolate, tuple(_shape_of(features) for features in outputs))

    def reaches(self, sources: Sources, block: int) -> bool:
        """Whether it knows what comes out of a block (from 1) on another path, whose blocks up to there are its own."""
        return 0 < block <= len(self.outputs) and self.sources.mask[:block] == sources.mask[:block]


def first_call(route: Route, first: int, last: int, seen: Seen, device: torch.device, dtype: torch.dtype) -> Seen:
    """Call a route's blocks `first` to `last` (from 1) and the converter behind, with zeros of shapes that were seen.

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
    if seen.reaches(route.sources, first - 1):
        outputs = list(seen.outputs[: first - 1])
        shape, grid = outputs[-1]
        features = Features(torch.zeros(shape, device=device, dtype=dtype), grid)
    else:
        outputs = []
        images = torch.zeros(seen.images, device=device, dtype=dtype)
        features = route.embedder(images, seen.interpolate)
    for block in range(len(outputs) + 1, last + 1):
        features = route.run_block(block, features)
        outputs.append(_shape_of(features))
    if last < len(route.blocks):
        route.convert(last + 1, features)
    else:
        route.head(features)
    return Seen(route.sources, seen.images, seen.interpolate, tuple(outputs))


def _shape_of(features: Features) -> tuple[tuple[int, ...], tuple[int, int] | None]:
    return features.tensor.shape, features.grid


def touch_pages(module: nn.Module) -> None:
    """Read one byte of each memory page under a module's tensors; tensors on other devices have none here.

    Weights in their stored dtype are pages of a mapped file, which come in when they are first read.
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.device.type == "cpu" and tensor.numel() > 0 and tensor.is_contiguous():
            pages = tensor.detach().reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE]
            pages.sum()
