"""The rows of the tables: masks by order."""

from __future__ import annotations

from collections.abc import Iterable

from pwl_hf.evaluation import masks_of


def student(num_stages: int) -> str:
    """The mask of the student, stage 0."""
    return "S" * num_stages


def rows(num_stages: int) -> dict[str, list[str]]:
    """The masks of each order, every mask once: the student and the teacher are the first and the last stage."""
    found = {"prefix": masks_of("prefix", num_stages)}
    for order in ("suffix", "contiguous"):
        found[order] = [mask for mask in masks_of(order, num_stages) if len(set(mask)) == 2]
    return found


def stages(num_stages: int) -> list[str]:
    """Stages 0 to N."""
    return masks_of("prefix", num_stages)


def mixed(masks: Iterable[str]) -> list[str]:
    """Those that have blocks of both, sorted."""
    return sorted(mask for mask in masks if len(set(mask)) == 2)
