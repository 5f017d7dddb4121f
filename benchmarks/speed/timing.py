"""Times that can be compared: interleaved, many, from cold or warm files."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spread:
    """Values of one thing, such as times in seconds.

    Args:
        median: The middle one.
        low: The first quartile.
        high: The third quartile.
        count: How many.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of values; one alone is its own quartiles."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = statistics.quantiles(values, n=4)
        return cls(statistics.median(values), low, high, len(values))


def interleaved(
    things: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Time each thing in turn, `repeats` times over, after one round that does not count.

    Args:
        things: What to time, by name.
        repeats: Rounds that count, at least 1.
        before: Called before each, and not timed.

    Returns:
        Seconds, round by round.
    """
    times: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(repeats + 1):
        for name, thing in things.items():
            before()
            gc.collect()
            start = time.perf_counter()
            kept = thing()
            taken = time.perf_counter() - start
            del kept
            if turn:
                times[name].append(taken)
    return times


def drop_from_page_cache(folder: Path) -> None:
    """Make the next read of every file in a folder come from the disk (Linux)."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
