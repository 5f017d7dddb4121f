"""What was counted, and what follows from it (pure Python).

Counts are of samples, or of words where each has a label; one is right if the greatest logit is at its label.
"""

from __future__ import annotations

from dataclasses import dataclass

from pwl_hf.evaluation.intervals import Interval, paired, wilson


@dataclass(frozen=True)
class Comparison:
    """A mask and a reference, over the same samples.

    Args:
        reference: The mask that it is compared with.
        gained: Samples that are right, and wrong in the reference.
        lost: Samples that are wrong, and right in the reference.
        total: All samples.
    """

    reference: str
    gained: int
    lost: int
    total: int

    @property
    def difference(self) -> float:
        """By how much the accuracy is higher than the reference's."""
        return (self.gained - self.lost) / self.total

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the difference, for paired samples."""
        return paired(self.gained, self.lost, self.total)


@dataclass(frozen=True)
class MaskAccuracy:
    """One mask.

    Args:
        sources: The mask, such as `"TTSS"`.
        correct: How many samples are right.
        total: How many samples there are.
        over_student: Compared with the student, if that was evaluated too and is another mask.
        over_previous: A stage compared with the stage before it, if that was evaluated too.
        macro_f1: The mean of F1 over the classes.
        span_f1: F1 of whole spans, where labels are tags of words.
    """

    sources: str
    correct: int
    total: int
    over_student: Comparison | None = None
    over_previous: Comparison | None = None
    macro_f1: float | None = None
    span_f1: float | None = None

    @property
    def accuracy(self) -> float:
        """The part of the samples that are right."""
        return self.correct / self.total

    @property
    def interval(self) -> Interval:
        """The 95 % interval of the accuracy."""
        return wilson(self.correct, self.total)


@dataclass(frozen=True)
class Evaluation:
    """Masks over the same samples.

    Args:
        masks: What was counted for each, in the order that was asked for.
    """

    masks: tuple[MaskAccuracy, ...]

    @property
    def total(self) -> int:
        """The number of samples."""
        return self.masks[0].total

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of each mask, in their order."""
        return [mask.accuracy for mask in self.masks]

    @property
    def below_student(self) -> list[MaskAccuracy]:
        """The masks that are less accurate than the student, by however little."""
        return [mask for mask in self.masks if mask.over_student is not None and mask.over_student.difference < 0]

    def __getitem__(self, sources: str) -> MaskAccuracy:
        for mask in self.masks:
            if mask.sources == sources:
                return mask
        raise KeyError(f"{sources!r} was not evaluated; {', '.join(mask.sources for mask in self.masks)} were")
