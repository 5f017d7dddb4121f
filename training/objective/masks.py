"""Which masks are trained at a step: declared distributions, drawn alike in every process (pure Python).

Notation: N blocks; a mask has one letter a block, `T` for the teacher and `S` for the student.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from pwl_hf.evaluation import masks_of

# Groups of masks: a group is drawn first, each alike, then a mask of it, each alike.
Distribution = Sequence[Sequence[str]]


def prefix_masks(num_blocks: int) -> list[str]:
    """The masks of stages 1 to N-1: all stages that take blocks of both networks."""
    return masks_of("prefix", num_blocks)[1:-1]


def stage_masks(schedule: Iterable[str]) -> list[str]:
    """The masks of a schedule's stages that take blocks of both networks, each once.

    Blocks in low precision are the teacher's: nothing more is trained for them.

    Args:
        schedule: The mask of each stage.
    """
    found = dict.fromkeys(mask.replace("Q", "T") for mask in schedule)
    return [mask for mask in found if {"S", "T"} <= set(mask)]


def suffix_masks(num_blocks: int) -> list[str]:
    """Student blocks first, teacher blocks last, at least one of each."""
    return masks_of("suffix", num_blocks)[1:-1]


def mixed_masks(num_blocks: int) -> list[str]:
    """All masks with blocks of both networks."""
    return masks_of("all", num_blocks)[1:-1]


def distribution(name: str, num_blocks: int, stages: Sequence[str] | None = None) -> Distribution:
    """What masks are drawn from.

    Args:
        name: `"suffix-scattered"`: half of the time a suffix, half any other mask that is no stage.
            `"uniform"`: any mask that is no stage. `"method"`: half of the time a stage or a suffix, half any
            mixed mask, as in the code of arXiv 2509.22319.
        num_blocks: N.
        stages: The masks that are stages; T^k S^(N-k) by default.

    Raises:
        ValueError: For another name.
    """
    prefixes, suffixes, mixed = prefix_masks(num_blocks), suffix_masks(num_blocks), mixed_masks(num_blocks)
    ours = set(prefixes if stages is None else stages)
    groups = {
        "suffix-scattered": [
            [mask for mask in suffixes if mask not in ours],
            [mask for mask in mixed if mask not in {*ours, *suffixes}],
        ],
        "uniform": [[mask for mask in mixed if mask not in ours]],
        "method": [prefixes + suffixes, mixed],
    }
    if name not in groups:
        raise ValueError(f"mask distribution must be one of {', '.join(groups)}, got {name!r}")
    return [group for group in groups[name] if group]


def draw_masks(groups: Distribution, count: int, seed: int, step: int) -> list[str]:
    """The masks of a step, no one twice.

    They depend on seed and step alone: all processes draw the same, and so does a run that is continued.

    Args:
        groups: What they are drawn from.
        count: How many; fewer if there are no more.
        seed: The run's seed.
        step: The step's number.
    """
    draw = random.Random(f"{seed}/{step}")
    left = [list(group) for group in groups if group]
    found: list[str] = []
    while left and len(found) < count:
        mask = draw.choice(draw.choice(left))
        found.append(mask)
        left = [kept for group in left if (kept := [other for other in group if other != mask])]
    return found
