"""Time until the runtime is at its last stage, from a Hub, against a plain onnxruntime session of the teacher."""

from __future__ import annotations

from functools import partial

from benchmarks.speed.child import Task
from benchmarks.speed.figures import Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, Asked, serving_pair, total_bytes
from benchmarks.speed.launching import RUNTIME_CLASS, SESSION_CLASS, Run, fresh_from_empty_cache, in_turn

SESSION, STREAM = "onnxruntime's session of the teacher", "all stages, streamed while it answers as its student"


def hub(place: Place) -> Measured:
    """From the start of a process, with an empty cache, one answer at the end. A third of the rounds."""
    size = place.pair.size
    place.exported()
    tasks = {
        SESSION: Task(SESSION_CLASS, PWL, size, arrays="numpy"),
        STREAM: Task(RUNTIME_CLASS, PWL, size, "stream", arrays="numpy"),
    }
    asked: dict[str, list[list[Asked]]] = {name: [] for name in tasks}
    with serving_pair(place) as server:

        def done(name: str) -> Run:
            server.take()
            run = fresh_from_empty_cache(place.data, server, tasks[name])
            asked[name].append(server.take())
            return run

        runs = in_turn({name: partial(done, name) for name in tasks}, place.rounds(1, of=3))
    seconds = {name: [run.seconds for run in found] for name, found in runs.items()}
    sizes = {name: [total_bytes(requests) for requests in found] for name, found in asked.items()}
    figures = [
        *ratios(seconds, SESSION),
        Figure.ratio(f"bytes alone: {STREAM}", sizes[STREAM], sizes[SESSION], f"{SESSION}'s"),
        *(Figure.of(f"requests: {name}", [len(found) for found in asked[name]], "requests") for name in tasks),
        *(Figure.of(f"bytes: {name}", [size / 1e6 for size in sizes[name]], "MB") for name in tasks),
        *(Figure.of(f"time: {name}", [1e3 * value for value in seconds[name]], "ms") for name in tasks),
    ]
    marks = {name: [dict(run.marks) for run in found] for name, found in runs.items()}
    stages = [list(run.stages) for run in runs[STREAM]]
    return Measured(figures, {"seconds": seconds, "marks": marks, "stages": stages})
