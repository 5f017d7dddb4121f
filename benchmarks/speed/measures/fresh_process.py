"""Time from the start of a process to its first answer, imports included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.speed.child import Task
from benchmarks.speed.figures import FIRST_ROW, STUDENT_ROW, TEACHER_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, STUDENT, TEACHER, Hub, environment, serving_pair
from benchmarks.speed.launching import PWL_CLASS, Run, fresh, plain_class

AHEAD, LOCAL = "first answer, fetched while importing", "first answer from local files"


def from_hub(place: Place) -> Measured:
    """From a Hub with an empty cache; and, in turn, from local files. A third of the rounds."""
    size, plain, folder = place.pair.size, plain_class(place), place.repository().resolve()
    tasks = {
        TEACHER_ROW: Task(plain, TEACHER, size),
        STUDENT_ROW: Task(plain, STUDENT, size),
        FIRST_ROW: Task(PWL_CLASS, PWL, size),
        AHEAD: Task(PWL_CLASS, PWL, size, "ahead"),
        LOCAL: Task(PWL_CLASS, str(folder), size),
    }
    with serving_pair(place) as hub:
        # Brings what all processes import into the page cache.
        _with_empty_cache(place, hub, tasks[LOCAL])
        things = {name: partial(_with_empty_cache, place, hub, task) for name, task in tasks.items()}
        runs = _in_turn(things, place.rounds(1, of=3))
    return _measured(runs, [_against(runs, name, LOCAL) for name in (FIRST_ROW, AHEAD)])


def from_local_files(place: Place) -> Measured:
    """From local files in the page cache, verified before. Two thirds of the rounds."""
    size, plain, folder = place.pair.size, plain_class(place), place.repository().resolve()
    tasks = {
        TEACHER_ROW: Task(plain, str(folder / "teacher"), size),
        STUDENT_ROW: Task(plain, str(folder / "student"), size),
        FIRST_ROW: Task(PWL_CLASS, str(folder), size),
    }
    with TemporaryDirectory(dir=place.data) as home:
        things = {name: partial(fresh, task, environment(Path(home))) for name, task in tasks.items()}
        things[FIRST_ROW]()
        runs = _in_turn(things, place.rounds(2, of=3))
    return _measured(runs, [_against(runs, FIRST_ROW, STUDENT_ROW)])


def _with_empty_cache(place: Place, hub: Hub, task: Task) -> Run:
    with TemporaryDirectory(dir=place.data) as home:
        return fresh(task, hub.environment(Path(home)))


def _in_turn(things: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            runs[name].append(thing())
    return runs


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
        Figure.of(TEACHER_ROW, [1e3 * value for value in seconds[TEACHER_ROW]], "ms"),
    ]
    marks = {name: [dict(run.marks) for run in found] for name, found in runs.items()}
    return Measured(figures, {"seconds": seconds, "marks": marks})


def _against(runs: Mapping[str, Sequence[Run]], name: str, base: str) -> Figure:
    own, whole = ([run.seconds for run in runs[each]] for each in (name, base))
    return Figure.ratio(f"{name}, against {base}", own, whole, base)
