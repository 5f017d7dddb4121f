"""Which of the paths that are no stage is trained at a step (pure Python).

Notation: N blocks; a mask has one letter a block, `T` for the teacher and `S` for the student.
"""

from __future__ import annotations

import random

from pwl_hf.modeling import Sources


def prefix_masks(num_stages: int) -> list[str]:
    """The masks of stages 1 to N-1: all stages that take blocks of both networks."""
    return [Sources.prefix(stage, num_stages).mask for stage in range(1, num_stages)]


def suffix_masks(num_stages: int) -> list[str]:
    """Student blocks first, teacher blocks last, at least one of each."""
    return ["S" * (num_stages - k) + "T" * k for k in range(1, num_stages)]


def scattered_masks(num_stages: int) -> list[str]:
    """The masks of both networks that are neither prefix nor suffix."""
    known = {*prefix_masks(num_stages), *suffix_masks(num_stages)}
    return [s.mask for s in Sources.all(num_stages) if s.is_mixed and s.mask not in known]


def sample_mask(num_stages: int, seed: int, step: int) -> str | None:
    """The non-prefix mask to train at a step: a suffix half of the time, any scattered one otherwise.

    The method's code draws so too, prefixes apart, which are trained at every step. It depends on seed and
    step alone: all processes draw the same, and so does a run that is continued.

    Args:
        num_stages: N.
        seed: The run's seed.
        step: The step's number.

    Returns:
        The mask; None if there is only one block, and so no such mask.
    """
    draw = random.Random(f"{seed}/{step}")
    wanted = [group for group in (suffix_masks(num_stages), scattered_masks(num_stages)) if group]
    return draw.choice(draw.choice(wanted)) if wanted else None
