"""Where a network is cut into blocks (pure Python).

Notation: a network has R resolution levels with `depths[r]` units each (a unit is the family's finest
residual unit), L = sum(depths) units in all. A cut is a number of units from the input; the cuts of a
network are its N block ends, the last one L.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ..bounds import check_depth


def default_cuts(depths: Sequence[int], num_blocks: int) -> list[int]:
    """Cuts of equal depth.

    With at most as many blocks as resolution levels, blocks end where levels end, so that networks of
    different depth are cut at the same resolutions. With more, each level is divided evenly.

    Args:
        depths: Units of each resolution level; a plain transformer has one level.
        num_blocks: The number of blocks N.

    Returns:
        N increasing cuts, the last one `sum(depths)`.

    Raises:
        ValueError: If the network has too few units for N blocks, or more than any network has.
    """
    check_depth("a network", sum(depths))
    levels, starts = len(depths), [0, *accumulate(depths)]
    cuts: list[int] = []
    # One block more than units is one too many, and enough to tell.
    for i in range(1, min(num_blocks, sum(depths) + 1) + 1):
        if num_blocks <= levels:
            cuts.append(starts[_round_half_up(i * levels, num_blocks)])
        else:
            level, rest = divmod(i * levels, num_blocks)
            inside = _round_half_up(rest * depths[level], num_blocks) if rest else 0
            cuts.append(starts[level] + inside)
    if any(before >= after for before, after in zip([0, *cuts], cuts, strict=False)):
        raise ValueError(
            f"a network of {list(depths)} units cannot be cut into {num_blocks} blocks of at least one unit each; "
            f"lower num_blocks, or give the cuts yourself if it has that many units"
        )
    return cuts


def check_cuts(name: str, cuts: Sequence[int], num_units: int, num_blocks: int) -> None:
    """Refuse cuts that do not divide `num_units` units into `num_blocks` blocks.

    Args:
        name: The field to name in the error, such as `"teacher_cuts"`.
        cuts: The block ends.
        num_units: The network's depth L.
        num_blocks: The number of blocks N.

    Raises:
        ValueError: If the cuts are not `num_blocks` increasing whole numbers from 1 to `num_units`, or the network
            has more units than any has.
    """
    check_depth(name, num_units)
    if any(isinstance(cut, bool) or not isinstance(cut, int) for cut in cuts):
        raise ValueError(f"{name} must be whole numbers, got {list(cuts)}")
    if len(cuts) != num_blocks:
        raise ValueError(f"{name} must have one cut a block, {num_blocks} in all, got {list(cuts)}")
    if any(before >= after for before, after in zip([0, *cuts], cuts, strict=False)):
        raise ValueError(f"{name} must be positive and increasing, got {list(cuts)}")
    if cuts[-1] != num_units:
        raise ValueError(
            f"{name} must cover every unit: the last cut must be {num_units}, the network's depth, got {list(cuts)}"
        )


def units_of_block(cuts: Sequence[int], block: int) -> range:
    """The units (from 0) of block `block` (from 1)."""
    return range(0 if block == 1 else cuts[block - 2], cuts[block - 1])


def _round_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
