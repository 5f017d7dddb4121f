"""What a swap costs the requests around it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.speed.answering import Answer, Client, quantile, requests_of
from benchmarks.speed.figures import Figure, Measured, Place
from pwl_hf import PWLForImageClassification, runtime

# Swaps of a stream and by hand, at the usual 9 rounds.
_SWAPS, _SWAPS_BY_HAND, _ROUNDS = 50, 12, 9
# Requests on each side of the one under way.
_BESIDE = 2
# The most idle requests at each stage, and the most seconds for them.
_IDLE, _IDLE_SECONDS = 20, 1.5

# Called when a stage is reached: the model stays there until it returns.
Reached = Callable[[int], None]


@dataclass
class Swaps:
    """Swaps, and the requests around them.

    Args:
        around: For each swap, the request under way, or else the next, and those on each side of it.
        idle: By stage, the seconds of idle requests.
    """

    around: list[Sequence[Answer]] = field(default_factory=list)
    idle: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, answers: Sequence[Answer], at: Sequence[float], resting: Sequence[Answer]) -> None:
        """Add the swaps of one model.

        Args:
            answers: All its requests in order.
            at: For each swap, when it had been done (`time.monotonic`).
            resting: The requests while nothing else was done.
        """
        for swap in at:
            middle = next(i for i, answer in enumerate(answers) if answer.ended >= swap)
            self.around.append(answers[max(0, middle - _BESIDE) : middle + _BESIDE + 1])
        for answer in resting:
            self.idle[answer.stage].append(answer.seconds)

    def idle_quantile(self, share: float) -> dict[int, float]:
        """By stage, a quantile of the seconds of idle requests."""
        return {stage: quantile(seconds, share) for stage, seconds in sorted(self.idle.items())}

    def excesses(self) -> list[float]:
        """For each swap, how many seconds the slowest request around it took beyond the idle p95 of its stage."""
        limits = self.idle_quantile(0.95)
        return [max(answer.seconds - limits[answer.stage] for answer in around) for around in self.around]


class Growing(Protocol):
    """What grows: a torch model, or one of the runtime."""

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        ...

    def load_next_stage(self) -> int:
        """Go to the next stage, and tell it."""
        ...

    def stream_stages(self, *, on_stage: Callable[[Any, int], None]) -> AbstractContextManager[object]:
        """Go to the last stage in another thread."""
        ...


@dataclass(frozen=True)
class Requested:
    """A model that is asked.

    Args:
        model: The model, at its first stage.
        ask: Asks it once, and tells the stage of the route that it took.
    """

    model: Growing
    ask: Callable[[], int]


def swaps(place: Place) -> Measured:
    """Swaps of a stream, and of `load_next_stage` called in another thread than the requests."""
    folder, pixel_values = place.repository(), place.pair.pixel_values()

    def load() -> Requested:
        model = PWLForImageClassification.from_pretrained(folder)
        return Requested(model, requests_of(model, pixel_values))

    return swaps_of(load, place.repeats)


def on_the_runtime(place: Place) -> Measured:
    """The same of the runtime, with one thread."""
    folder, images = place.exported(), place.pair.pixel_values().numpy()

    def load() -> Requested:
        model = runtime.load(folder, threads=1)

        def ask() -> int:
            stage: int | None = model.stage
            assert stage is not None
            model.logits(pixel_values=images)
            return stage

        return Requested(model, ask)

    return swaps_of(load, place.repeats)


def swaps_of(load: Callable[[], Requested], repeats: int) -> Measured:
    """Swaps of a stream, and by hand.

    Args:
        load: Loads a model.
        repeats: As in `Place`; fewer than 9 are fewer swaps.
    """
    ways = {
        "swap of a stream": (_stream, _SWAPS),
        "swap by load_next_stage in another thread": (_by_hand, _SWAPS_BY_HAND),
    }
    seen = {name: _watch(load, grow, count, repeats) for name, (grow, count) in ways.items()}
    figures = [
        Figure.of(name, [1000 * seconds for seconds in found.excesses()], "ms", "idle p95 of the stage")
        for name, found in seen.items()
    ]
    series = {
        name: {
            "excess_ms": [round(1000 * seconds, 3) for seconds in found.excesses()],
            "idle_p50_ms": {stage: round(1000 * s, 3) for stage, s in found.idle_quantile(0.5).items()},
            "idle_p95_ms": {stage: round(1000 * s, 3) for stage, s in found.idle_quantile(0.95).items()},
        }
        for name, found in seen.items()
    }
    return Measured(figures, series)


def _watch(load: Callable[[], Requested], grow: Callable[[Growing, Reached], None], count: int, repeats: int) -> Swaps:
    """Grow models until there are enough swaps; those of the first model do not count."""
    wanted, found = max(1, round(count * min(1.0, repeats / _ROUNDS))), Swaps()
    _grow_once(load(), grow, Swaps())
    while len(found.around) < wanted:
        _grow_once(load(), grow, found)
    return found


def _grow_once(asked: Requested, grow: Callable[[Growing, Reached], None], found: Swaps) -> None:
    at: list[float] = []
    with Client(asked.ask) as client:
        spans = [client.rest(_IDLE_SECONDS, _IDLE)]

        def reached(stage: int) -> None:
            at.append(time.monotonic())
            spans.append(client.rest(_IDLE_SECONDS, _IDLE))

        grow(asked.model, reached)
    found.add(client.answers, at, [answer for span in spans for answer in client.within(span)])


def _stream(model: Growing, reached: Reached) -> None:
    with model.stream_stages(on_stage=lambda _, stage: reached(stage)):
        pass


def _by_hand(model: Growing, reached: Reached) -> None:
    for _ in range(model.num_stages):
        reached(model.load_next_stage())
