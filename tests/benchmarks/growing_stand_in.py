"""Behaves like a model that grows, in three stages and in no time, to try what times models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch


class Growing:
    """The stand-in.

    Args:
        logit: What it answers.
    """

    num_stages = 2

    def __init__(self, logit: float) -> None:
        self.logit = logit

    @classmethod
    def from_pretrained(cls, source: str, cache_dir: str | None = None) -> Growing:
        """A model from `"good"` or `"not finite"`; FileNotFoundError from anywhere else."""
        if source not in ("good", "not finite"):
            raise FileNotFoundError(source)
        return cls(1.0 if source == "good" else float("nan"))

    def __call__(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.full((len(images), 2), self.logit))

    def load_next_stage(self) -> None:
        """As the model's."""

    @contextmanager
    def stream_stages(self, on_stage: Callable[[Any, int], None]) -> Iterator[None]:
        """As the model's."""
        for stage in range(1, self.num_stages + 1):
            on_stage(self, stage)
        yield
