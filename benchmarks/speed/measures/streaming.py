"""Requests while stages are downloaded, verified and attached, against the same requests while nothing else is done."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.speed.answering import Answer, Client, quantile, requests_of
from benchmarks.speed.figures import Figure, Measured, Place
from benchmarks.speed.fresh import Fresh, Mark
from benchmarks.speed.hub import PWL, STUDENT, TEACHER, Hub, serving_pair
from benchmarks.speed.pairs import pairs
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of

GROWING = "while stages stream"
PLAIN = "while transformers loads the teacher in a thread"

# The most idle requests at a stage, and the most seconds for them in each round.
_IDLE, _IDLE_SECONDS_A_ROUND = 200, 0.5


def requests(place: Place) -> Measured:
    """Latency of requests, one after the other and one thread, from a fresh process on two cores, empty cache.

    Beside PWL what users would do without it: answer with the student, load the teacher with transformers in a
    thread, and answer with the teacher when it is there. Each in a third as many rounds as elsewhere.
    """
    functions = {GROWING: "grow", PLAIN: "replace"}
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in functions}
    with serving_pair(place) as hub:
        for _ in range(place.rounds(1, of=3)):
            for name, found in _round(hub, functions, place).items():
                seen[name].append(found)
    figures = [figure for name, runs in seen.items() for figure in _figures(name, runs)]
    return Measured(figures, {name: runs[-1] for name, runs in seen.items()})


def _round(hub: Hub, functions: Mapping[str, str], place: Place) -> dict[str, dict[str, Any]]:
    """Run each function once. The processes start together, since importing is slow, and wait for their turn."""
    arguments = {"pair": place.name, "idle_seconds": _IDLE_SECONDS_A_ROUND * place.repeats}
    with ExitStack() as stack:
        processes = {}
        for name, function in functions.items():
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            processes[name] = stack.enter_context(Fresh(f"{__name__}:{function}", arguments, hub.environment(home)))
        for process in processes.values():
            process.wait()
        return {name: process.run() for name, process in processes.items()}


# --- What the fresh process does ----------------------------------------------------------------------------------


def grow(mark: Mark, pair: str, idle_seconds: float) -> dict[str, Any]:
    """A model from the Hub that answers while it streams its stages, and at each stage afterwards.

    Returns:
        What `_seen` gives.
    """
    pixel_values = _ready(pair)
    model = PWLForImageClassification.from_pretrained(PWL)
    marks: list[tuple[int, float]] = []
    with Client(requests_of(model, pixel_values)) as client:
        idle = client.within(client.rest(idle_seconds, _IDLE))
        begin = time.monotonic()
        with model.stream_stages(on_stage=lambda _, stage: marks.append((stage, time.monotonic()))):
            pass
        end = time.monotonic()
        for stage in reversed(range(model.num_stages + 1)):
            model.set_stage(stage)
            idle += client.within(client.rest(idle_seconds, _IDLE))
    return _seen(client.answers, (begin, end), idle, marks)


def replace(mark: Mark, pair: str, idle_seconds: float) -> dict[str, Any]:
    """The student answers while transformers loads the teacher in another thread; then the teacher does, as stage 1.

    Returns:
        What `_seen` gives.
    """
    pixel_values = _ready(pair)
    network = family_of(pairs()[pair].teacher).model_class()
    networks: list[PreTrainedModel] = [network.from_pretrained(STUDENT)]
    current = [0]

    def ask() -> int:
        stage = current[0]
        networks[stage](pixel_values)
        return stage

    with Client(ask) as client:
        idle = client.within(client.rest(idle_seconds, _IDLE))
        begin = time.monotonic()
        networks.append(network.from_pretrained(TEACHER))
        current[0] = 1
        end = time.monotonic()
        # The first pass with it reads its pages in: that is a request, too.
        client.wait(2)
        until = time.monotonic()
        idle += client.within(client.rest(idle_seconds, _IDLE))
        current[0] = 0
        idle += client.within(client.rest(idle_seconds, _IDLE))
    return _seen(client.answers, (begin, until), idle, [(1, end)])


def _ready(pair: str) -> torch.Tensor:
    # One core for the requests, one to spare; the Hub's process has others.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    family_of(pairs()[pair].teacher).model_class()
    return pairs()[pair].pixel_values()


def _seen(
    answers: Sequence[Answer], span: tuple[float, float], idle: Iterable[Answer], marks: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    """For JSON: `requests` in the span, `idle` ones by stage, and `marks`, rows of seconds and stage.

    A request is a row of the second it began in, its milliseconds, those in which its thread ran, and its stage.
    """

    def row(answer: Answer) -> list[float]:
        times = round(1000 * answer.seconds, 3), round(1000 * answer.worked, 3)
        return [round(answer.began - span[0], 4), *times, answer.stage]

    return {
        "requests": [row(answer) for answer in answers if answer.ended > span[0] and answer.began < span[1]],
        "idle": [row(answer) for answer in idle],
        "marks": [[round(at - span[0], 4), stage] for stage, at in marks],
    }


# --- What is made of it -------------------------------------------------------------------------------------------


def _figures(name: str, runs: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Each request against a quantile of the idle ones of its stage, in all runs; then the same quantile of these.

    Were nothing disturbed, each would be 1, whatever part of the requests each stage had.
    """

    def against(share: float, column: int) -> list[float]:
        limits = by_stage([row for run in runs for row in run["idle"]], column, lambda times: quantile(times, share))
        return [quantile([row[column] / limits[row[3]] for row in run["requests"]], share) for run in runs]

    medians = by_stage([row for run in runs for row in run["idle"]], 1, lambda times: quantile(times, 0.5))
    slowest = [max(row[1] - medians[row[3]] for row in run["requests"]) for run in runs]
    return [
        Figure.of(f"p99 {name}", against(0.99, 1), "x", "idle p99 of the same stages"),
        Figure.of(f"p99 {name}, time that the thread ran", against(0.99, 2), "x", "idle p99 of the same stages"),
        Figure.of(f"median {name}", against(0.5, 1), "x", "idle median of the same stages"),
        Figure.of(f"slowest {name}", slowest, "ms", "above the idle median of its stage"),
    ]


def by_stage(
    rows: Sequence[Sequence[float]], column: int, of: Callable[[Sequence[float]], float]
) -> dict[float, float]:
    """A quantity of the requests of each stage.

    Args:
        rows: Requests, as `_seen` gives them.
        column: 1 for milliseconds, 2 for those in which the thread ran.
        of: Called with these of one stage.
    """
    stages = sorted({row[3] for row in rows})
    return {stage: of([row[column] for row in rows if row[3] == stage]) for stage in stages}
