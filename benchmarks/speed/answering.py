"""Requests, one after the other from a thread of their own, while other threads change the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

from pwl_hf import PWLForImageClassification


@dataclass(frozen=True)
class Answer:
    """A request and how long it took.

    Args:
        began: When, in seconds of `time.monotonic`.
        seconds: How long it took.
        stage: The stage of the route that it took.
    """

    began: float
    seconds: float
    stage: int

    @property
    def ended(self) -> float:
        """When it was answered."""
        return self.began + self.seconds


class Client:
    """Sends requests within a `with` block, each when the one before it was answered.

    Args:
        model: The model; at a stage, always.
        pixel_values: The images of each request.
    """

    def __init__(self, model: PWLForImageClassification, pixel_values: torch.Tensor) -> None:
        self.answers: list[Answer] = []
        self._model, self._pixel_values = model, pixel_values
        self._more, self._ended = threading.Condition(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, name="client")

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

    def _ask(self) -> None:
        try:
            with torch.inference_mode():
                while not self._ended:
                    answer = self._one()
                    with self._more:
                        self.answers.append(answer)
                        self._more.notify_all()
        except BaseException as error:
            with self._more:
                self._error, self._ended = error, True
                self._more.notify_all()

    def _one(self) -> Answer:
        # A route is taken at the beginning of the pass; that a swap comes between these lines is a matter of
        # microseconds.
        stage = self._model.stage
        assert stage is not None
        began = time.monotonic()
        self._model(self._pixel_values)
        return Answer(began, time.monotonic() - began, stage)


def quantile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least a share of them do not exceed.

    Args:
        values: At least one.
        share: 0 to 1; 0.95 for the p95.
    """
    ordered = sorted(values)
    # Exact where the product is whole: 0.95 of 20 values is the 19th.
    rank = -(-round(share * len(ordered) * 1e6) // 10**6)
    return ordered[max(rank, 1) - 1]
