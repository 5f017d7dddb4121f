"""Loads that several measures time: each gives its model and an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from benchmarks.speed.timing import drop_from_page_cache, interleaved
from pwl_hf import PWLForImageClassification


def by_transformers(network: type[PreTrainedModel], path: Path, pixel_values: torch.Tensor) -> Callable[[], object]:
    """Transformers' own way of loading a network, and a first answer.

    Args:
        network: Its class.
        path: The folder of its files.
        pixel_values: What it answers to.
    """

    def answer() -> object:
        model = network.from_pretrained(path)
        return model, model(pixel_values).logits

    return answer


def by_stages(folder: Path, until: int, pixel_values: torch.Tensor) -> Callable[[], object]:
    """PWL's way, with one answer at the end.

    Args:
        folder: The repository.
        until: The stage that answers.
        pixel_values: What it answers to.
    """

    def answer() -> object:
        model = PWLForImageClassification.from_pretrained(folder)
        for _ in range(until):
            model.load_next_stage()
        return model, model(pixel_values).logits

    return answer


def taking_turns(
    loads: dict[str, Callable[[], object]], repeats: int, folder: Path, *, cold: bool
) -> dict[str, list[float]]:
    """Time loads as `interleaved` does, without gradients.

    Args:
        loads: The loads by name.
        repeats: How often each.
        folder: The folder of the files that they load.
        cold: Whether the files are dropped from the page cache before each.
    """
    with torch.inference_mode():
        before = (lambda: drop_from_page_cache(folder)) if cold else lambda: None
        return interleaved(loads, repeats, before)
