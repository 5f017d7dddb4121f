"""Accuracies of all ways, and seconds from fresh processes and a Hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from benchmarks.real.exits import EarlyExit
from benchmarks.real.rivals import INT8_WAY, RUNGS_WAY, Way
from benchmarks.real.serving import Int8First
from benchmarks.speed.child import Task
from benchmarks.speed.hub import LATENCY, serving
from benchmarks.speed.launching import Run, fresh_from_empty_cache, in_turn
from benchmarks.store import Entry
from pwl_hf import PWLForImageClassification
from pwl_hf.data import DataSource, open_split

_SIZE = 32


def labelled_images(dataset: str, processor: Path, max_samples: int | None = None) -> Any:
    """The test images as items, in memory.

    Args:
        dataset: The data, as `pwl-hf evaluate` takes it.
        processor: The folder of the image processor.
        max_samples: So many of them, always the same.
    """
    split = open_split(DataSource(dataset, max_samples=max_samples), "test")
    loaded = AutoImageProcessor.from_pretrained(processor)  # type: ignore[no-untyped-call]
    return split.pixels(loaded, num_channels=3, keep_in_memory=True)


@torch.inference_mode()
def count_right(way: str, folder: Path, images: Any) -> Entry:
    """How many images the answers of a way get right: of each rung, of int8 weights, or of each exit.

    Args:
        way: Its name.
        folder: Its files.
        images: Items with `pixel_values` and `labels`.

    Returns:
        `correct`, one number for each answer, and `total`.
    """
    if way == INT8_WAY:
        int8 = Int8First.from_pretrained(str(folder))
        answers = lambda pixel_values: [int8(pixel_values).logits]  # noqa: E731
    elif way == RUNGS_WAY:
        answers = partial(_at_every_stage, PWLForImageClassification.from_pretrained(folder))
    else:
        exits = EarlyExit.from_pretrained(folder)
        for _ in range(exits.num_stages):
            exits.load_next_stage()
        answers = exits.all_exits
    correct: list[int] = []
    loader: DataLoader[Any] = DataLoader(images, batch_size=500)
    for batch in loader:
        right = [int((logits.argmax(-1) == batch["labels"]).sum()) for logits in answers(batch["pixel_values"])]
        correct = [a + b for a, b in zip(correct or [0] * len(right), right, strict=True)]
    return {"correct": correct, "total": len(images)}


def _at_every_stage(model: PWLForImageClassification, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for stage in range(model.num_stages + 1):
        model.set_stage(stage)
        found.append(model(pixel_values).logits)
    return found


def time_ways(known: Mapping[str, Way], data: Path, bandwidth: float, rounds: int) -> dict[str, Entry]:
    """Seconds from the start of a process to each answer, from a Hub with an empty cache; all ways take turns.

    Args:
        known: The ways.
        data: Where caches and the Hub's files are made.
        bandwidth: Bytes a second.
        rounds: How often each is done.

    Returns:
        By way: `answers`, a row of seconds for each round, and `sent`, the bytes of all the Hub's answers in the first.
    """
    tasks = {name: Task(way.network, way.hub_id, _SIZE, way.task, arrays=way.arrays) for name, way in known.items()}
    folders = {way.hub_id: way.folder for way in known.values()}
    sent: dict[str, int] = {}
    with serving(folders, data / "hub", bandwidth=bandwidth, latency=LATENCY) as hub:
        # Brings what the processes import into the page cache, and tells the bytes.
        for name, task in tasks.items():
            hub.take()
            fresh_from_empty_cache(data, hub, task)
            sent[name] = sum(request.sent for request in hub.take())
        runs = in_turn({name: partial(fresh_from_empty_cache, data, hub, task) for name, task in tasks.items()}, rounds)
    return {
        name: {"answers": [answers_of(run, known[name].task) for run in found], "sent": sent[name]}
        for name, found in runs.items()
    }


def answers_of(run: Run, task: str) -> list[float]:
    """The seconds at which a process had its first answer, and could give each further one.

    Args:
        run: What the process did.
        task: The `way` of its `Task`.
    """
    if task == "first":
        return [run.seconds]
    # That a stage was there; the last one has answered too.
    return [run.marks["first"], *run.stages[1:-1], run.seconds]
