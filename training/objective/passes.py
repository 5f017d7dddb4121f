"""What the terms of one step share: the images, and the paths that were run over them.

Notation: N blocks; B images of C channels, H x W pixels; K labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from pwl_hf.modeling import PWLForImageClassification
from pwl_hf.modeling.shared_paths import PathOutput, SharedPaths

# All images of a batch.
ALL = slice(None)


@dataclass(frozen=True)
class Passes:
    """The passes of a step, each run when a term first asks for it.

    Args:
        model: A PWL model with everything resident.
        pixel_values: (B, C, H, W), floating.
        labels: (B,), int64; None where the teacher's answers alone are learnt from.
        step: The step's number, the same in every process.
        seed: The run's seed.
        sample_ids: (B,), int64: which images these are, for terms that know something of each.
        shared: Let paths share the blocks that they have in common (see `shared_paths`).
    """

    model: PWLForImageClassification
    pixel_values: torch.Tensor
    labels: torch.Tensor | None = None
    step: int = 0
    seed: int = 0
    sample_ids: torch.Tensor | None = None
    shared: bool = True
    _alone: dict[str, PathOutput] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_stages(self) -> int:
        """N."""
        return self.model.num_stages

    @cached_property
    def teacher(self) -> PathOutput:
        """The teacher's `logits` (B, K) and `hidden_states` (N tensors), without gradients."""
        with torch.no_grad():
            return self.path("T" * self.num_stages)

    @cached_property
    def student(self) -> PathOutput:
        """The student's `logits` (B, K) and `hidden_states` (N tensors)."""
        return self.path("S" * self.num_stages)

    def path(self, mask: str) -> PathOutput:
        """The `logits` and `hidden_states` of a mask."""
        if self.shared:
            return self._paths(mask)
        if mask not in self._alone:
            found = self.model(self.pixel_values, sources=mask, output_hidden_states=True, return_dict=True)
            self._alone[mask] = PathOutput(found.logits, found.hidden_states)
        return self._alone[mask]

    def logits(self, mask: str, rows: slice = ALL) -> torch.Tensor:
        """The logits of a mask, of all images (B, K) or of some.

        Of some, what lies before the mask's first change is run for all the same, and what comes after for them
        alone: BatchNorms there take the statistics of fewer images.
        """
        if rows == ALL or not self.shared:
            return self.path(mask).logits[rows]
        return self._paths.logits_of(mask, rows)

    @cached_property
    def _paths(self) -> SharedPaths:
        return self.model.shared_paths(self.pixel_values)
