"""The memory of a process, as the kernel counts it (Linux), and how it goes while the process works.

Weights are pages of a mapped file: they come in as they are read, belong to the page cache as well, and the kernel may
drop them under pressure. They are counted all the same, for a model that answers needs them. Three counts:

- private: pages that no other process has mapped, and that this one has mapped once;
- proportional (PSS): each page once however often this process has mapped it, divided by the processes that have it.
  A file mapped twice, as a changed block is looked for, has no private page, but its proportional size is whole;
- resident (RSS): each mapping of each page.

What a process has after its imports, before it works, is taken off: `Watched.baseline`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.speed.fresh import Fresh
from benchmarks.speed.resident import highest_resident

# Seconds between two samples. Taking one of a process of 1 GB takes some milliseconds, and makes its page faults wait.
INTERVAL = 0.01


@dataclass(frozen=True)
class Memory:
    """The memory of a process at a moment, in bytes.

    Args:
        at: When, in seconds of `time.monotonic`.
        private: Private_Clean and Private_Dirty.
        proportional: Pss.
        resident: Rss.
    """

    at: float
    private: int
    proportional: int
    resident: int


def memory_of(pid: int | None = None) -> Memory:
    """The memory of a process now; of this one by default.

    Raises:
        ProcessLookupError: If there is no such process any more.
    """
    path = Path("/proc", str(pid or os.getpid()), "smaps_rollup")
    try:
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} has ended: there is no {path}") from error
    at = time.monotonic()
    sizes = {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows if row[-1] == "kB"}
    return Memory(at, sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"], sizes["Rss"])


class Sampler:
    """Samples of a process's memory from a thread, within a `with` block.

    Args:
        pid: The process; this one by default.
        interval: Seconds between two samples.
    """

    def __init__(self, pid: int | None = None, interval: float = INTERVAL) -> None:
        self.samples: list[Memory] = []
        self._pid, self._interval = pid, interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    def take(self) -> Memory:
        """One more sample, now."""
        sample = memory_of(self._pid)
        self.samples.append(sample)
        return sample

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self.take()
            except ProcessLookupError:
                return


@dataclass(frozen=True)
class Watched:
    """What was seen of a process while it worked.

    Args:
        marks: The memory at each mark, in order; the process stood still meanwhile. The first is the baseline.
        samples: The memory all the while from the first mark on, in order of time, the marks' own with them.
        highest_resident: The most that was ever resident from the first mark on, by the kernel's own count, which
            misses nothing between two samples.
        result: What the function returned.
    """

    marks: Sequence[tuple[str, Memory]]
    samples: Sequence[Memory]
    highest_resident: int
    result: Any

    @property
    def baseline(self) -> Memory:
        """The memory at the first mark, before the work."""
        return self.marks[0][1]

    def peak(self, count: str = "private") -> int:
        """The most bytes above the baseline.

        Args:
            count: `"private"`, `"proportional"` or `"resident"`.
        """
        values = [int(getattr(sample, count)) for sample in (*self.samples, self.baseline)]
        return max(values) - values[-1]

    def series(self) -> dict[str, Any]:
        """For plots: `memory`, rows of seconds, private MB and proportional MB; and `marks`, rows of seconds and name.

        Seconds are from the first mark on; MB are 10^6 bytes above the baseline.
        """
        start = self.baseline
        return {
            "memory": [
                [
                    round(sample.at - start.at, 4),
                    round((sample.private - start.private) / 1e6, 2),
                    round((sample.proportional - start.proportional) / 1e6, 2),
                ]
                for sample in self.samples
            ],
            "marks": [[round(memory.at - start.at, 4), name] for name, memory in self.marks],
        }


def watch(
    works: Mapping[str, tuple[str, Mapping[str, Any]]], environment: Mapping[str, str] | None = None
) -> dict[str, Watched]:
    """Run functions one after the other, each in a fresh process, and sample its memory.

    The processes are started together, for importing takes long, and wait for their turn: none maps a model's files
    while another works, and each is measured against itself after its imports.

    Args:
        works: By name: `module:function` as `Fresh` takes it, and its arguments. Its first mark is the baseline.
        environment: The processes' environment; that of this one by default.
    """
    with ExitStack() as stack:
        processes = {name: stack.enter_context(Fresh(*work, environment)) for name, work in works.items()}
        for process in processes.values():
            process.wait()
        return {name: _watch(process) for name, process in processes.items()}


def _watch(process: Fresh) -> Watched:
    marks: list[tuple[str, Memory]] = []
    with Sampler(process.pid) as sampler:

        def on_mark(name: str, at: float) -> None:
            if not marks:
                # The highest count begins anew.
                Path("/proc", str(process.pid), "clear_refs").write_text("5", encoding="ascii")
            marks.append((name, sampler.take()))

        result = process.run(on_mark)
        highest = highest_resident(process.pid)
    if not marks:
        raise ValueError("the function has made no mark, so nothing tells its work from its imports")
    begin = marks[0][1].at
    samples = sorted((sample for sample in sampler.samples if sample.at >= begin), key=lambda sample: sample.at)
    return Watched(marks, samples, highest - marks[0][1].resident, result)
