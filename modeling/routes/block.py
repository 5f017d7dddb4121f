"""A block of a route as a module of its own: tensors in, tensors out, for exporting and for others' tools."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..families.base import Boundary, Features
from .route import Route


class Block(nn.Module):
    """One block along a route, without the converter before it.

    Args:
        route: The route; the block has its modules, and the BatchNorm statistics of its mask.
        number: The block, from 1.
        main_input: The name of the model's main input, which the first block takes.
        before: The features after the block before it, in its own width; None for the first block.
    """

    def __init__(self, route: Route, number: int, main_input: str, before: Boundary | None) -> None:
        super().__init__()
        self._segment = route.segment_of(number)
        self.number, self.main_input = number, main_input
        self._grid = before.grid if before is not None else None
        # Names of modules have no dots.
        self.parts = nn.ModuleDict({p.replace(".", "/"): m for p, m in self._segment.modules.items()})

    def forward(self, features: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the block.

        Args:
            features: The model's main input for the first block; for others the features before it, (B, tokens, width)
                or (B, width, height, width), of inputs of the size that the config names.
            inputs: Further inputs of the model, such as `attention_mask`.

        Returns:
            The features after the block, or the logits after the last one.
        """
        if self.number == 1:
            found = self._segment(None, {self.main_input: features, **inputs})
        else:
            found = self._segment(Features(features, self._grid), inputs)
        return found.outputs[-1].tensor if found.logits is None else found.logits
