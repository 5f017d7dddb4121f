"""Counting which images each mask has right, batch by batch.

Notation: M masks; B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pwl_hf.evaluation.results import Comparison, Evaluation, MaskAccuracy


class Tally:
    """The counts of some masks, and of each against its references.

    Args:
        masks: The masks, each once.
        schedule: The mask of each stage, in order.
    """

    def __init__(self, masks: Sequence[str], schedule: Sequence[str]) -> None:
        self.masks = list(masks)
        place = {mask: i for i, mask in enumerate(self.masks)}
        before = dict(zip(schedule[1:], schedule, strict=False))
        self._references = {
            "over_student": [place.get("S" * len(mask)) for mask in self.masks],
            "over_previous": [place.get(before.get(mask, "")) for mask in self.masks],
        }
        self._total = 0
        self._correct = torch.zeros(len(self.masks), dtype=torch.int64)
        self._gained = {name: torch.zeros_like(self._correct) for name in self._references}
        self._lost = {name: torch.zeros_like(self._correct) for name in self._references}

    def add(self, right: torch.Tensor) -> None:
        """Count a batch: (M, B) bool on the CPU, in the order of the masks."""
        self._total += right.shape[1]
        self._correct += right.sum(1)
        for name, references in self._references.items():
            # Compared with itself where there is nothing to compare it with: the counts stay 0.
            other = right[[i if reference is None else reference for i, reference in enumerate(references)]]
            self._gained[name] += (right & ~other).sum(1)
            self._lost[name] += (~right & other).sum(1)

    def result(self) -> Evaluation:
        """What was counted.

        Raises:
            ValueError: If there were no images.
        """
        if not self._total:
            raise ValueError("there are no images to evaluate on: the data is empty")
        return Evaluation(
            tuple(
                MaskAccuracy(
                    mask,
                    int(self._correct[i]),
                    self._total,
                    **{name: self._comparison(name, i) for name in self._references},
                )
                for i, mask in enumerate(self.masks)
            )
        )

    def _comparison(self, name: str, i: int) -> Comparison | None:
        reference = self._references[name][i]
        if reference is None or reference == i:
            return None
        return Comparison(self.masks[reference], int(self._gained[name][i]), int(self._lost[name][i]), self._total)
