"""What was measured of all ways, put together from the stores, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.real.rivals import (
    EXITS_WAYS,
    INT8_WAY,
    PWL_WAY,
    RUNGS_WAY,
    RUNTIME_WAY,
    SESSION_WAY,
    STUDENT_WAY,
    TEACHER_WAY,
)
from benchmarks.recipes import masks
from benchmarks.store import Entry
from pwl_hf.evaluation.intervals import wilson

# In the order of the table; the last ones of a picture lie above the others.
WAYS = (PWL_WAY, RUNTIME_WAY, RUNGS_WAY, STUDENT_WAY, TEACHER_WAY, SESSION_WAY, INT8_WAY, *EXITS_WAYS.values())
_MISSING = "-"


@dataclass(frozen=True)
class Answers:
    """The answers of a way, from the first one on.

    Args:
        names: What answers: `stage 0`, `exit 1`, ...
        correct: How many images each gets right; None where that was not measured.
        total: How many images there are.
        sizes: Bytes of weights until each.
        seconds: By bandwidth in bytes a second: the median second of each, from the start of a fresh process.
        sent: Bytes of all that the Hub sent, if that was measured.
    """

    names: Sequence[str]
    correct: Sequence[int | None]
    total: int
    sizes: Sequence[int]
    seconds: Mapping[float, Sequence[float]]
    sent: int | None

    def accuracy(self, number: int) -> float | None:
        """The accuracy of an answer, 0 to 1."""
        correct = self.correct[number]
        return None if correct is None else correct / self.total


def compare(
    run: Entry,
    sizes: Mapping[str, Sequence[int]],
    rivals: Mapping[str, Entry],
    times: Mapping[float, Mapping[str, Entry]],
) -> dict[str, Answers]:
    """All ways whose files are known, by name.

    Args:
        run: PWL's run, as the store of `recipes` has it.
        sizes: Bytes of weights until each answer, by way.
        rivals: What `count_right` found, by way.
        times: What `time_ways` found, by bandwidth and way.
    """
    total = int(run["test_images"])
    stages = [round(run["accuracy"][mask] * total) for mask in masks.stages(len(next(iter(run["accuracy"]))))]
    int8 = rivals.get(INT8_WAY, {"correct": [None]})["correct"]
    correct: dict[str, Sequence[int | None]] = {
        PWL_WAY: stages,
        RUNTIME_WAY: stages,
        TEACHER_WAY: stages[-1:],
        SESSION_WAY: stages[-1:],
        STUDENT_WAY: stages[:1],
        INT8_WAY: [*int8, stages[-1]],
    }
    found = {}
    for way in (way for way in WAYS if way in sizes):
        counted = correct[way] if way in correct else rivals.get(way, {"correct": [None] * len(sizes[way])})["correct"]
        timed = {bandwidth: by_way[way] for bandwidth, by_way in times.items() if way in by_way}
        seconds = {
            bandwidth: [statistics.median(column) for column in zip(*entry["answers"], strict=True)]
            for bandwidth, entry in timed.items()
        }
        sent = next((int(entry["sent"]) for entry in timed.values()), None)
        found[way] = Answers(_names(way, len(counted)), counted, total, sizes[way], seconds, sent)
    return found


def render(answers: Mapping[str, Answers], title: str, about: Sequence[str]) -> str:
    """The comparison as Markdown: a row for each answer of each way.

    Args:
        answers: What `compare` gives.
        title: Its heading.
        about: Paragraphs above the table.
    """
    bandwidths = sorted({bandwidth for found in answers.values() for bandwidth in found.seconds}, reverse=True)
    head = ["way", "what answers", "accuracy (95 % interval)", "weights until then", "sent in all"]
    head += [f"seconds at {line_of(bandwidth)}" for bandwidth in bandwidths]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for way, found in answers.items():
        for i, name in enumerate(found.names):
            cells = [way if i == 0 else "", name, _accuracy(found, i), f"{found.sizes[i] / 1e3:,.0f} kB"]
            last = i == len(found.names) - 1
            cells.append(f"{found.sent / 1e3:,.0f} kB" if last and found.sent is not None else "")
            for bandwidth in bandwidths:
                seconds = found.seconds.get(bandwidth)
                cells.append(_MISSING if seconds is None else f"{seconds[i]:.2f}")
            rows.append("| " + " | ".join(cells) + " |")
    return "\n\n".join([f"# {title}", *about, "\n".join(rows), *_in_one_number(answers, bandwidths)]) + "\n"


def mean_until(end: float, points: Sequence[float], accuracies: Sequence[float]) -> float:
    """The mean accuracy of what could be answered up to `end`: 0 before the first answer, then that of the last one.

    The area under a line of the picture, or under accuracy over bytes, in parts of `end`.

    Args:
        end: A second, or bytes.
        points: When each answer was there, ascending, none after `end`.
        accuracies: What each is worth.
    """
    steps = pairwise([*points, end])
    return sum(value * (after - before) for value, (before, after) in zip(accuracies, steps, strict=True)) / end


def _in_one_number(answers: Mapping[str, Answers], bandwidths: Sequence[float]) -> list[str]:
    """A row for each way whose answers were all measured, the best in bold."""
    whole = {}
    for way, found in answers.items():
        values = [value for number in range(len(found.names)) if (value := found.accuracy(number)) is not None]
        if len(values) == len(found.names):
            whole[way] = (found, values)
    points = [("the bytes of weights", {way: found.sizes for way, (found, _) in whole.items()})]
    for bandwidth in bandwidths:
        timed = {way: found.seconds[bandwidth] for way, (found, _) in whole.items() if bandwidth in found.seconds}
        points.append((f"the seconds at {line_of(bandwidth)}", timed))
    columns = {}
    for title, by_way in points:
        end = max((row[-1] for row in by_way.values()), default=1.0)
        columns[title] = {way: mean_until(end, row, whole[way][1]) for way, row in by_way.items()}
    rows = ["| way | " + " | ".join(f"over {title}" for title in columns) + " |", "|" + "---|" * (1 + len(columns))]
    for way in whole:
        cells = []
        for column in columns.values():
            text = f"{100 * column[way]:.1f} %" if way in column else _MISSING
            cells.append(f"**{text}**" if way in column and column[way] == max(column.values()) else text)
        rows.append(f"| {way} | " + " | ".join(cells) + " |")
    about = (
        "The mean accuracy of what could be answered until the last way is whole, what has not answered counting as 0:"
    )
    return [about, "\n".join(rows)]


def line_of(bandwidth: float) -> str:
    """A bandwidth in bytes a second, in words."""
    return f"{bandwidth / 1e6:g} MB/s" if bandwidth >= 1e6 else f"{bandwidth / 1e3:g} kB/s"


def _names(way: str, count: int) -> list[str]:
    if way in (PWL_WAY, RUNTIME_WAY, RUNGS_WAY):
        return [f"stage {stage}" for stage in range(count)]
    if way == INT8_WAY:
        return ["int8", "the teacher"]
    if way in EXITS_WAYS.values():
        return [*(f"exit {number}" for number in range(1, count)), "its head"]
    return ["the student" if way == STUDENT_WAY else "the teacher"]


def _accuracy(found: Answers, number: int) -> str:
    correct = found.correct[number]
    if correct is None:
        return _MISSING
    low, high = wilson(correct, found.total)
    return f"{100 * correct / found.total:.2f} % ({100 * low:.1f} to {100 * high:.1f})"
