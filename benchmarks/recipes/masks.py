"""The rows of the tables: masks by order."""

from __future__ import annotations

from collections.abc import Iterable

from pwl_hf.evaluation import masks_of


def student(num_blocks: int) -> str:
    """The mask of the student, stage 0."""
    return "S" * num_blocks


def rows(num_blocks: int) -> dict[str, list[str]]:
    """The masks of each order, every mask once: the student and the teacher are the first and the last stage."""
    found = {"prefix": masks_of("prefix", num_blocks)}
    for order in ("suffix", "contiguous"):
        found[order] = [mask for mask in masks_of(order, num_blocks) if len(set(mask)) == 2]
    return found


def stages(num_blocks: int) -> list[str]:
    """Stages 0 to N."""
    return masks_of("prefix", num_blocks)


def mixed(masks: Iterable[str]) -> list[str]:
    """Those that have blocks of both, sorted."""
    return sorted(mask for mask in masks if len(set(mask)) == 2)
