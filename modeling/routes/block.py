"""A block of a route as a module of its own: tensors in, tensors out, for exporting and for others' tools."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from ..families.base import Boundary, Features
from .route import Route


class Block(nn.Module):
    """One block along a route, without the converter before it.

    Args:
        route: The route; the block has its modules, and the BatchNorm statistics of its mask as they are now: ask for
            another block after a move or a cast of the model.
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
        self._of_teacher = route.sources.roles[number - 1] == "teacher"
        self.training = any(module.training for module in self.parts.values())

    def train(self, mode: bool = True) -> Self:
        """As the model's: the modules are the model's own, and the teacher's stay in eval mode."""
        return super().train(mode and not self._of_teacher)

    def forward(self, features: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Run the block.

        Args:
            features: The model's main input for the first block; for others the features before it, (B, tokens, width)
                or (B, width, height, width), of inputs of the size that the config names.
            inputs: Further inputs of the model, such as `attention_mask`; in a `DrivenFamily` the main input as well.

        Returns:
            The features after the block, or the logits after the last one.
        """
        if self.number == 1:
            found = self._segment(None, {self.main_input: features, **inputs})
        else:
            found = self._segment(Features(features, self._grid), inputs)
        return found.outputs[-1].tensor if found.logits is None else found.logits
