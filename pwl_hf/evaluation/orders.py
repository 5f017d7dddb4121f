"""In which order a teacher's blocks may come, as masks (pure Python).

Notation: N blocks; a mask has one letter a block, `T` for the teacher and `S` for the student.
"""

from __future__ import annotations

from pwl_hf.modeling.schedule import Schedule
from pwl_hf.modeling.sources import Sources

ORDERS = ("prefix", "suffix", "contiguous", "all")


def masks_of(order: str, num_blocks: int) -> list[str]:
    """The masks of an order, the student's first and the teacher's last.

    Args:
        order: `"prefix"`: the teacher's blocks from the first on, as stages usually are. `"suffix"`: from the last one
            back. `"contiguous"`: the student with one run of the teacher's blocks between its first and its last block;
            the student and the teacher stand beside them. `"all"`: every one of the 2^N.
        num_blocks: N.

    Raises:
        ValueError: For another order.
    """
    student, teacher = "S" * num_blocks, "T" * num_blocks
    if order == "prefix":
        return [mask.mask for mask in Schedule.prefixes(num_blocks)]
    if order == "suffix":
        return [student[k:] + teacher[:k] for k in range(num_blocks + 1)]
    if order == "contiguous":
        runs = [
            student[:start] + teacher[start:end] + student[end:]
            for length in range(1, num_blocks - 1)
            for start in range(1, num_blocks - length)
            for end in [start + length]
        ]
        return [student, *runs, teacher]
    if order == "all":
        return [source.mask for source in Sources.all(num_blocks)]
    raise ValueError(f"the order must be one of {', '.join(ORDERS)}, got {order!r}")
