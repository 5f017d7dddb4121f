"""Requests, one after the other from a thread of their own, while other threads change the model."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from pwl_hf import PWLForImageClassification

# Requests after a change of stage that do not count as idle: pages come in, the old stage's memory is given back.
_SETTLING = 3


@dataclass(frozen=True)
class Answer:
    """A request and how long it took.

    Args:
        began: When, in seconds of `time.monotonic`.
        seconds: How long it took.
        worked: For how many of these seconds its thread ran; the rest is waiting, for the interpreter's lock, the
            memory's pages or a core.
        stage: The stage of the route that it took.
    """

    began: float
    seconds: float
    worked: float
    stage: int

    @property
    def ended(self) -> float:
        """When it was answered."""
        return self.began + self.seconds


class Client:
    """Sends requests within a `with` block, each when the one before it was answered.

    Args:
        ask: Asks one, and tells the stage of the route that it took.
    """

    def __init__(self, ask: Callable[[], int]) -> None:
        self.answers: list[Answer] = []
        self._ask = ask
        self._more, self._ended = threading.Condition(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._go_on, name="client")

    def rest(self, seconds: float, most: int) -> tuple[float, float]:
        """Wait for requests while the caller does nothing, after a few that do not count.

        Args:
            seconds: For so long.
            most: But for no more requests than these.

        Returns:
            From when to when.
        """
        self.wait(_SETTLING)
        start, before = time.monotonic(), len(self.answers)
        while time.monotonic() - start < seconds and len(self.answers) - before < most:
            self.wait(1)
        return start, time.monotonic()

    def within(self, span: tuple[float, float]) -> list[Answer]:
        """The requests that began and ended in a span of time."""
        return [answer for answer in self.answers if span[0] <= answer.began and answer.ended <= span[1]]

    def wait(self, count: int) -> None:
        """Wait, in any other thread, until `count` more requests than now were answered.

        Raises:
            RuntimeError: If a request failed, or the block has ended.
        """
        with self._more:
            until = len(self.answers) + count
            self._more.wait_for(lambda: self._ended or len(self.answers) >= until)
            if len(self.answers) < until:
                raise RuntimeError(f"no more requests are sent ({self._error})") from self._error

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._more:
            self._ended = True
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _go_on(self) -> None:
        try:
            with torch.inference_mode():
                while not self._ended:
                    began, working = time.monotonic(), time.thread_time()
                    stage = self._ask()
                    answer = Answer(began, time.monotonic() - began, time.thread_time() - working, stage)
                    with self._more:
                        self.answers.append(answer)
                        self._more.notify_all()
        except BaseException as error:
            with self._more:
                self._error, self._ended = error, True
                self._more.notify_all()


def requests_of(model: PWLForImageClassification, pixel_values: torch.Tensor) -> Callable[[], int]:
    """What asks a model that goes from stage to stage.

    Args:
        model: The model; at a stage, always.
        pixel_values: The images of each request.
    """

    def ask() -> int:
        # A route is taken at the beginning of the pass: only a swap within these microseconds would be told wrong.
        stage: int | None = model.stage
        assert stage is not None
        model(pixel_values)
        return stage

    return ask


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least a share of them do not exceed.

    Args:
        values: At least one.
        share: 0 to 1; 0.95 for the p95.
    """
    ordered = sorted(values)
    # Exact where the product is whole: 0.95 of 20 values is the 19th.
    rank: int = math.ceil(round(share * len(ordered), 6))
    return ordered[max(rank, 1) - 1]
