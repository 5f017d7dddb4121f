"""Time from the start of a process to its first answer, imports included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.speed.child import Task
from benchmarks.speed.figures import FIRST_ROW, STUDENT_ROW, TEACHER_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, STUDENT, TEACHER, environment, serving_pair
from benchmarks.speed.launching import (
    PWL_CLASS,
    RUNTIME_CLASS,
    Run,
    fresh,
    fresh_from_empty_cache,
    in_turn,
    plain_class,
)

RUNTIME = "first answer, runtime"
AHEAD, LOCAL = "first answer, with prefetch", "first answer from local files"


def from_hub(place: Place) -> Measured:
    """From a Hub with an empty cache; and, in turn, from local files. A third of the rounds."""
    size, plain, folder = place.pair.size, plain_class(place), place.exported().resolve()
    tasks = {
        TEACHER_ROW: Task(plain, TEACHER, size),
        STUDENT_ROW: Task(plain, STUDENT, size),
        RUNTIME: Task(RUNTIME_CLASS, PWL, size, arrays="numpy"),
        FIRST_ROW: Task(PWL_CLASS, PWL, size),
        AHEAD: Task(PWL_CLASS, PWL, size, "ahead"),
        LOCAL: Task(PWL_CLASS, str(folder), size),
    }
    with serving_pair(place) as hub:
        # Brings what all processes import into the page cache.
        for name in (LOCAL, RUNTIME):
            fresh_from_empty_cache(place.data, hub, tasks[name])
        things = {name: partial(fresh_from_empty_cache, place.data, hub, task) for name, task in tasks.items()}
        runs = in_turn(things, place.rounds(1, of=3))
    return _measured(runs, [_against(runs, name, LOCAL) for name in (FIRST_ROW, AHEAD)])


def from_local_files(place: Place) -> Measured:
    """From local files in the page cache, verified before. Two thirds of the rounds."""
    size, plain, folder = place.pair.size, plain_class(place), place.exported().resolve()
    tasks = {
        TEACHER_ROW: Task(plain, str(folder / "teacher"), size),
        STUDENT_ROW: Task(plain, str(folder / "student"), size),
        RUNTIME: Task(RUNTIME_CLASS, str(folder), size, arrays="numpy"),
        FIRST_ROW: Task(PWL_CLASS, str(folder), size),
    }
    with TemporaryDirectory(dir=place.data) as home:
        things = {name: partial(fresh, task, environment(Path(home))) for name, task in tasks.items()}
        for name in (FIRST_ROW, RUNTIME):
            things[name]()
        runs = in_turn(things, place.rounds(2, of=3))
    return _measured(runs, [_against(runs, FIRST_ROW, STUDENT_ROW)])


def _measured(runs: Mapping[str, Sequence[Run]], more: Sequence[Figure]) -> Measured:
    seconds = {name: [run.seconds for run in found] for name, found in runs.items()}
    imports = {name: [run.marks["imported"] for run in found] for name, found in runs.items()}
    figures = [
        *ratios(seconds, TEACHER_ROW),
        *more,
        *(
            Figure.ratio(f"imports alone: {name}", imports[name], seconds[TEACHER_ROW], TEACHER_ROW)
            for name in (STUDENT_ROW, FIRST_ROW)
        ),
        *(
            Figure.of(f"time: {name}", [1e3 * value for value in seconds[name]], "ms")
            for name in (TEACHER_ROW, RUNTIME)
        ),
    ]
    marks = {name: [dict(run.marks) for run in found] for name, found in runs.items()}
    return Measured(figures, {"seconds": seconds, "marks": marks})


def _against(runs: Mapping[str, Sequence[Run]], name: str, base: str) -> Figure:
    own, whole = ([run.seconds for run in runs[each]] for each in (name, base))
    return Figure.ratio(f"{name}, against {base}", own, whole, base)
