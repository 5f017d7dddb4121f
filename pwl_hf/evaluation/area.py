"""Accuracies of all stages in one number (pure Python)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def area_over_bytes(accuracies: Sequence[float], total_bytes: Sequence[int]) -> float:
    """The mean accuracy of what can be answered while the bytes of a model come in, one after the other.

    With a_k the accuracy of stage k and b_k the bytes of all files up to it, accuracy is a step function of the
    bytes x that have come: 0 for x < b_0, for nothing answers before the student's file is there, and a_k for
    b_k <= x < b_(k+1). The area under it, divided by all bytes b_N, is

        sum over k < N of a_k (b_(k+1) - b_k) / b_N.

    The last stage's own accuracy does not count: it is reached when everything is there. A model that loaded its
    teacher in one piece would have 0, and no model reaches 1.

    Args:
        accuracies: N + 1 fractions, the student's first.
        total_bytes: N + 1 sizes: those of all files that have been loaded at each stage, so increasing.

    Raises:
        ValueError: If there are not as many of both, or the sizes do not increase from above 0.

    Example:

        >>> area_over_bytes([0.6, 0.8, 0.9], [10, 50, 100])
        0.64
    """
    if len(accuracies) != len(total_bytes) or not accuracies:
        raise ValueError(
            f"total_bytes must have one size a stage, got {len(total_bytes)} sizes for {len(accuracies)} stages"
        )
    if total_bytes[0] <= 0 or any(after <= before for before, after in pairwise(total_bytes)):
        raise ValueError(
            "total_bytes must be the size of all files loaded at each stage, so it increases from above 0, "
            f"got {list(total_bytes)}"
        )
    steps = zip(accuracies, pairwise(total_bytes), strict=False)
    return sum(value * (after - before) for value, (before, after) in steps) / total_bytes[-1]


def is_monotone(accuracies: Sequence[float]) -> bool:
    """Whether no stage is less accurate than the one before it."""
    return all(after >= before for before, after in pairwise(accuracies))
