"""The rows of the tables: masks by order."""

from __future__ import annotations

from collections.abc import Iterable


def student(num_stages: int) -> str:
    """The mask of the student, stage 0."""
    return "S" * num_stages


def teacher(num_stages: int) -> str:
    """The mask of the teacher, stage N."""
    return "T" * num_stages


def prefixes(num_stages: int) -> list[str]:
    """Stages 0 to N."""
    return ["T" * k + "S" * (num_stages - k) for k in range(num_stages + 1)]


def suffixes(num_stages: int) -> list[str]:
    """The student first, the teacher last, the fewest teacher blocks first."""
    return ["S" * (num_stages - k) + "T" * k for k in range(1, num_stages)]


def contiguous(num_stages: int) -> list[str]:
    """One run of teacher blocks with the student before and after it, short runs first."""
    return [
        "S" * start + "T" * length + "S" * (num_stages - start - length)
        for length in range(1, num_stages - 1)
        for start in range(1, num_stages - length)
    ]


def mixed(masks: Iterable[str]) -> list[str]:
    """Those that have blocks of both, sorted."""
    return sorted(mask for mask in masks if len(set(mask)) == 2)
