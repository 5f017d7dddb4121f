"""Memory of a process at stage 0: the runtime against torch, libraries and all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.speed.child import Task
from benchmarks.speed.figures import Figure, Measured, Place, ratios
from benchmarks.speed.hub import environment
from benchmarks.speed.launching import PWL_CLASS, RUNTIME_CLASS, fresh, in_turn

RUNTIME, TORCH = "stage 0 and an answer, runtime", "stage 0 and an answer, torch"


def memory(place: Place) -> Measured:
    """The most that was ever resident, local files that were verified before. A third of the rounds."""
    size, folder = place.pair.size, str(place.exported().resolve())
    tasks = {RUNTIME: Task(RUNTIME_CLASS, folder, size, arrays="numpy"), TORCH: Task(PWL_CLASS, folder, size)}
    with TemporaryDirectory(dir=place.data) as home:
        things = {name: partial(fresh, task, environment(Path(home))) for name, task in tasks.items()}
        for thing in things.values():
            thing()
        runs = in_turn(things, place.rounds(1, of=3))
    most = {name: [float(run.resident) for run in found] for name, found in runs.items()}
    figures = [Figure.of(f"peak: {name}", [value / 1e6 for value in found], "MB") for name, found in most.items()]
    return Measured([*ratios(most, TORCH), *figures], {"bytes": most})
