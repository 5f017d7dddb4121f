"""What fresh processes do in the tests; it imports little, for each of them does."""

from __future__ import annotations

import mmap
from pathlib import Path

from benchmarks.speed.fresh import Mark

# What imports leave behind.
IMPORTED = b"x" * 30_000_000


def hold(mark: Mark, size: int) -> int:
    """Hold bytes in ordinary memory."""
    mark("begin")
    kept = b"x" * size
    mark("held")
    return len(kept)


def map_twice(mark: Mark, path: str) -> None:
    """Map a file, and once more, and read all of it through both."""
    mark("begin")
    with Path(path).open("rb") as file:
        maps = []
        for count in ("once", "twice"):
            maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE))
            sum(maps[-1][:: mmap.PAGESIZE])
            mark(count)


def fail(mark: Mark) -> None:
    """Fail."""
    raise ValueError("on purpose")
