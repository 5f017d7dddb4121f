"""Time to the first answer and to the teacher from a Hub, with an empty cache, imports excluded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.speed.child import Task
from benchmarks.speed.figures import (
    FIRST_ROW,
    STUDENT_ROW,
    TEACHER_ROW,
    WHOLE_ROW,
    Figure,
    Measured,
    Place,
    ratios,
)
from benchmarks.speed.hub import PWL, STUDENT, TEACHER, Asked, serving_pair, total_bytes
from benchmarks.speed.launching import PWL_CLASS, Run, from_empty_cache, plain_class

STREAM = "all stages, streamed while it answers as its student"


def hub(place: Place) -> Measured:
    """The first load and answer of a fork of a process whose imports are done. A third of the rounds."""
    size, plain, folder = place.pair.size, plain_class(place), place.repository()
    tasks = {
        TEACHER_ROW: Task(plain, TEACHER, size),
        STUDENT_ROW: Task(plain, STUDENT, size),
        FIRST_ROW: Task(PWL_CLASS, PWL, size),
        WHOLE_ROW: Task(PWL_CLASS, PWL, size, "stages"),
        STREAM: Task(PWL_CLASS, PWL, size, "stream"),
    }
    rehearsed = [
        Task(plain, str((folder / "teacher").resolve()), size),
        *(Task(PWL_CLASS, str(folder.resolve()), size, way) for way in ("stages", "stream")),
    ]
    with serving_pair(place) as server:
        runs, asked = from_empty_cache(place, server, tasks, rehearsed, place.rounds(1, of=3))
    seconds = {name: [run.seconds for run in found] for name, found in runs.items()}
    figures = [
        *ratios(seconds, TEACHER_ROW),
        Figure.ratio("first answer, against the student's", seconds[FIRST_ROW], seconds[STUDENT_ROW], STUDENT_ROW),
        *_counts(asked),
    ]
    return Measured(figures, {"seconds": seconds, "first round": _timeline(runs, asked)})


def _counts(asked: dict[str, list[list[Asked]]]) -> list[Figure]:
    """Requests and bytes of each, and bytes relative to the teacher's."""
    sizes = {name: [total_bytes(requests) for requests in found] for name, found in asked.items()}
    figures = []
    for name in (TEACHER_ROW, STUDENT_ROW, FIRST_ROW, WHOLE_ROW):
        figures.append(Figure.of(f"requests: {name}", [len(found) for found in asked[name]], "requests"))
        figures.append(Figure.of(f"bytes: {name}", [size / 1e6 for size in sizes[name]], "MB"))
    for name in (FIRST_ROW, WHOLE_ROW):
        figures.append(Figure.ratio(f"bytes alone: {name}", sizes[name], sizes[TEACHER_ROW], f"{TEACHER_ROW}'s"))
    return figures


def _timeline(runs: dict[str, list[Run]], asked: dict[str, list[list[Asked]]]) -> dict[str, Any]:
    """The first round: seconds to each mark and stage, and each request with its second of arrival."""
    return {
        name: {
            "marks": dict(found[0].marks),
            "stages": list(found[0].stages),
            "requests": [_request(request, found[0].start) for request in asked[name][0]],
        }
        for name, found in runs.items()
    }


def _request(request: Asked, start: float) -> Sequence[Any]:
    return [request.at - start, request.method, request.file or request.path, request.sent]
