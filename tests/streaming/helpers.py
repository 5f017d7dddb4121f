"""Streams that stop where a test wants them, and what each stage answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from pwl_hf import PWLForImageClassification


@dataclass(frozen=True)
class Answers:
    """Images, and the logits of each stage for them, all of which differ."""

    images: torch.Tensor
    logits: list[torch.Tensor]

    def __post_init__(self) -> None:
        for i, one in enumerate(self.logits):
            assert not any(torch.equal(one, other) for other in self.logits[:i])

    def stage_of(self, logits: torch.Tensor) -> int | None:
        """The stage whose answer this is, bit for bit; None if it is nobody's."""
        return next((k for k, expected in enumerate(self.logits) if torch.equal(logits, expected)), None)

    @torch.no_grad()
    def stage_now(self, model: PWLForImageClassification) -> int | None:
        """The stage that a model answers from now."""
        return self.stage_of(model(self.images).logits)


class Pause:
    """An `on_stage` that stops the stream after one stage until it is let go."""

    def __init__(self, stage: int = 1) -> None:
        self.stage = stage
        self._reached, self._free = threading.Event(), threading.Event()

    def __call__(self, model: PWLForImageClassification, stage: int) -> None:
        if stage == self.stage:
            self._reached.set()
            assert self._free.wait(60)

    def reached(self) -> None:
        """Wait until the stream stands still."""
        assert self._reached.wait(60)

    def let_go(self) -> None:
        self._free.set()

    def __enter__(self) -> Pause:
        self.reached()
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()


def own_threads() -> list[threading.Thread]:
    """The threads of streams."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("pwl-")]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


class Predictions(Dataset):
    """A data set whose samples are a model's answers, stage, and whether it has a stream."""

    def __init__(self, model: PWLForImageClassification, images: torch.Tensor) -> None:
        self.model, self.images = model, images

    def __len__(self) -> int:
        return 1

    @torch.no_grad()
    def __getitem__(self, index: int) -> dict[str, Any]:
        first = self.model(self.images).logits
        has_stream = self.model.stream is not None
        with self.model.stream_stages() as stream:
            pass
        return {
            "first": first,
            "has_stream": has_stream,
            "stage": stream.stage,
            "last": self.model(self.images).logits,
        }


def wrap_attach(model: Any, wrapper: Callable[..., None]) -> None:
    """Let a function stand before the attaching of each part of a model: it is given what attaches, and what is."""
    for part in model.parts.inventory.parts.values():
        part.attach = partial(wrapper, part.attach)
