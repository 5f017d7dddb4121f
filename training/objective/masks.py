"""Which masks are trained at a step: declared distributions, drawn alike in every process (pure Python).

Notation: N blocks; a mask has one letter a block, `T` for the teacher and `S` for the student.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pwl_hf.evaluation import masks_of

# Groups of masks: a group is drawn first, each alike, then a mask of it, each alike.
Distribution = Sequence[Sequence[str]]


def prefix_masks(num_blocks: int) -> list[str]:
    """The masks of stages 1 to N-1: all stages that take blocks of both networks."""
    return masks_of("prefix", num_blocks)[1:-1]


def suffix_masks(num_blocks: int) -> list[str]:
    """Student blocks first, teacher blocks last, at least one of each."""
    return masks_of("suffix", num_blocks)[1:-1]


def mixed_masks(num_blocks: int) -> list[str]:
    """All masks with blocks of both networks."""
    return masks_of("all", num_blocks)[1:-1]


def distribution(name: str, num_blocks: int) -> Distribution:
    """What masks are drawn from.

    Args:
        name: `"suffix-scattered"`: half of the time a suffix, half any other mask that is no stage.
            `"uniform"`: any mask that is no stage. `"method"`: half of the time a stage or a suffix, half any
            mixed mask, as in the code of arXiv 2509.22319.
        num_blocks: N.

    Raises:
        ValueError: For another name.
    """
    prefixes, suffixes, mixed = prefix_masks(num_blocks), suffix_masks(num_blocks), mixed_masks(num_blocks)
    groups = {
        "suffix-scattered": [suffixes, [mask for mask in mixed if mask not in {*prefixes, *suffixes}]],
        "uniform": [[mask for mask in mixed if mask not in prefixes]],
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
