"""Time to the first answer and to the teacher from a Hub, with an empty cache; imports are not in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed.child import Task
from benchmarks.speed.figures import Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, STUDENT, TEACHER, Asked, serving_pair, total_bytes
from benchmarks.speed.launching import PWL_CLASS, Run, from_empty_cache, imported, plain_class
from benchmarks.speed.timing import Spread

TEACHER_ROW, STUDENT_ROW, FIRST = "transformers' teacher", "transformers' student", "first answer"
STAGES, STREAM = "all stages, one answer at the end", "all stages, streamed while it answers as its student"


def hub(place: Place) -> Measured:
    """Each in a fork of a process whose imports are done: the first load and the first answer of its life."""
    size, plain, folder = place.pair.size, plain_class(place), place.repository()
    tasks = {
        TEACHER_ROW: Task(plain, TEACHER, size),
        STUDENT_ROW: Task(plain, STUDENT, size),
        FIRST: Task(PWL_CLASS, PWL, size),
        STAGES: Task(PWL_CLASS, PWL, size, "stages"),
        STREAM: Task(PWL_CLASS, PWL, size, "stream"),
    }
    rehearsed = [
        Task(plain, str((folder / "teacher").resolve()), size),
        *(Task(PWL_CLASS, str(folder.resolve()), size, way) for way in ("stages", "stream")),
    ]
    runs: dict[str, list[Run]] = {name: [] for name in tasks}
    asked: dict[str, list[list[Asked]]] = {name: [] for name in tasks}
    with (
        TemporaryDirectory(dir=place.data) as home,
        serving_pair(place) as server,
        imported(rehearsed, server.environment(Path(home))) as run,
    ):
        for _ in range(hub_rounds(place)):
            for name, task in tasks.items():
                found, requests = from_empty_cache(place, server, run, task)
                runs[name].append(found)
                asked[name].append(requests)
    seconds = {name: [run.seconds for run in found] for name, found in runs.items()}
    against_student = Figure(
        "first answer, against the student's",
        Spread.of([own / whole for own, whole in zip(seconds[FIRST], seconds[STUDENT_ROW], strict=True)]),
        base=STUDENT_ROW,
    )
    figures = [*ratios(seconds, TEACHER_ROW, TEACHER_ROW), against_student, *_counts(asked)]
    return Measured(figures, {"seconds": seconds, "first round": _timeline(runs, asked)})


def hub_rounds(place: Place) -> int:
    """A teacher takes its size divided by the bandwidth each time, so there are fewer rounds than of other measures."""
    return max(1, place.repeats // 3)


def _counts(asked: dict[str, list[list[Asked]]]) -> list[Figure]:
    """Requests and bytes of each, and the bytes of the whole way as a part of the teacher's: what no haste saves."""
    figures = []
    for name in (TEACHER_ROW, STUDENT_ROW, FIRST, STAGES):
        figures.append(Figure(f"requests: {name}", Spread.of([float(len(found)) for found in asked[name]]), "requests"))
        sizes = [total_bytes(found) / 1e6 for found in asked[name]]
        figures.append(Figure(f"bytes: {name}", Spread.of(sizes), "MB"))
    for name in (FIRST, STAGES):
        parts = [
            total_bytes(own) / total_bytes(whole) for own, whole in zip(asked[name], asked[TEACHER_ROW], strict=True)
        ]
        figures.append(Figure(f"bytes alone: {name}", Spread.of(parts), base=f"{TEACHER_ROW}'s"))
    return figures


def _timeline(runs: dict[str, list[Run]], asked: dict[str, list[list[Asked]]]) -> dict[str, Any]:
    """Of the first round: seconds to each mark and stage, and the requests with seconds of their arrival."""
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
