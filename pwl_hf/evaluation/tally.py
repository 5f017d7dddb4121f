"""Counting what each mask answers, batch by batch.

Notation: M masks; K labels; a batch has n answers: one a sample, or of texts whose words have a label each, one a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pwl_hf.evaluation.results import Comparison, Evaluation, MaskAccuracy
from pwl_hf.evaluation.scores import are_tags, counts_by_class, macro_f1, span_f1


class Tally:
    """The counts of some masks, and of each against its references.

    Args:
        masks: The masks, each once.
        schedule: The mask of each stage, in order.
        names: The labels' names, by number.
        of_words: Whether each word has a label.
    """

    def __init__(
        self, masks: Sequence[str], schedule: Sequence[str], names: Sequence[str], *, of_words: bool = False
    ) -> None:
        self.masks = list(masks)
        self._names = list(names)
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
        self._classes = np.zeros((len(self.masks), 3, len(self._names)), np.int64)
        # Spans go over several words: what each mask answers in each text, and the labels last.
        self._texts: list[list[np.ndarray]] | None = None
        if of_words and are_tags(self._names):
            self._texts = [[] for _ in range(len(self.masks) + 1)]

    def add(self, answers: torch.Tensor, labels: torch.Tensor, counts: Sequence[int]) -> None:
        """Count a batch.

        Args:
            answers: (M, n) int64 on the CPU, in the order of the masks; below 0 for no answer.
            labels: (n,) int64 on the CPU.
            counts: How many of the answers each sample has.
        """
        right = answers == labels
        self._total += right.shape[1]
        self._correct += right.sum(1)
        for name, references in self._references.items():
            # Compared with itself where there is nothing to compare it with: the counts stay 0.
            other = right[[i if reference is None else reference for i, reference in enumerate(references)]]
            self._gained[name] += (right & ~other).sum(1)
            self._lost[name] += (~right & other).sum(1)
        rows = [*answers.numpy(), labels.numpy()]
        for i, row in enumerate(rows[:-1]):
            self._classes[i] += counts_by_class(row, rows[-1], len(self._names))
        if self._texts is not None:
            ends = np.cumsum(counts)[:-1]
            for texts, row in zip(self._texts, rows, strict=True):
                texts += np.split(row, ends)

    def result(self) -> Evaluation:
        """What was counted.

        Raises:
            ValueError: If there was nothing.
            InputError: If spans are to be counted, and seqeval is not installed.
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
                    macro_f1=macro_f1(self._classes[i]),
                    span_f1=None if self._texts is None else span_f1(self._texts[i], self._texts[-1], self._names),
                )
                for i, mask in enumerate(self.masks)
            )
        )

    def _comparison(self, name: str, i: int) -> Comparison | None:
        reference = self._references[name][i]
        if reference is None or reference == i:
            return None
        return Comparison(self.masks[reference], int(self._gained[name][i]), int(self._lost[name][i]), self._total)
