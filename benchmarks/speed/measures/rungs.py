"""Rungs of precision: the teacher's answer in low precision, the exact teacher by refinements, and what both weigh."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.speed.child import Task
from benchmarks.speed.figures import FIRST_ROW, TEACHER_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, RUNGS, TEACHER, serving, total_bytes
from benchmarks.speed.launching import PWL_CLASS, from_empty_cache, plain_class
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.parts.tier import read_split, split
from pwl_hf.modeling.repository.layout import quantised_file, refinement_file
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.modeling.repository.source import Repository

LOW_ROW = "first answer, the teacher in low precision"
RUNGS_ROW = "all rungs, streamed while it answers as its student"
SHARDS_ROW = "all stages without rungs, streamed while it answers as its student"
FIRST_OF_RUNGS = "first answer, of a repository with rungs"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class InLowPrecision:
    """Loads the rung that has all of the teacher in low precision, as a `Task` loads its network."""

    @staticmethod
    def from_pretrained(source: str, cache_dir: str | None = None) -> PWLForImageClassification:
        """The model at that rung."""
        manifest = Repository.open(source, cache_dir=cache_dir).manifest()
        stage = [mask.mask for mask in manifest.schedule].index("Q" * manifest.num_blocks)
        model: PWLForImageClassification = PWLForImageClassification.from_pretrained(
            source, stage=stage, cache_dir=cache_dir
        )
        return model


def hub(place: Place) -> Measured:
    """The first load and answer of a fork of a process whose imports are done. A third of the rounds."""
    size, plain, folder, rungs = place.pair.size, plain_class(place), place.repository(), place.with_tier()
    low = f"{__name__}:{InLowPrecision.__name__}"
    tasks = {
        TEACHER_ROW: Task(plain, TEACHER, size),
        FIRST_ROW: Task(PWL_CLASS, PWL, size),
        FIRST_OF_RUNGS: Task(PWL_CLASS, RUNGS, size),
        LOW_ROW: Task(low, RUNGS, size),
        SHARDS_ROW: Task(PWL_CLASS, PWL, size, "stream"),
        RUNGS_ROW: Task(PWL_CLASS, RUNGS, size, "stream"),
    }
    rehearsed = [
        Task(plain, str((folder / "teacher").resolve()), size),
        Task(low, str(rungs.resolve()), size),
        Task(PWL_CLASS, str(rungs.resolve()), size, "stages"),
    ]
    served = {PWL: folder, TEACHER: folder / "teacher", RUNGS: rungs}
    with serving(served, place.data / f"{place.name}-rungs-hub") as server:
        runs, asked = from_empty_cache(place, server, tasks, rehearsed, place.rounds(1, of=3))
    seconds = {name: [run.seconds for run in found] for name, found in runs.items()}
    sizes = {name: [total_bytes(requests) for requests in found] for name, found in asked.items()}
    figures = [
        *ratios(seconds, TEACHER_ROW),
        Figure.ratio(
            "first answer with rungs, against that without", seconds[FIRST_OF_RUNGS], seconds[FIRST_ROW], FIRST_ROW
        ),
    ]
    for name in (LOW_ROW, SHARDS_ROW, RUNGS_ROW):
        figures.append(Figure.ratio(f"bytes alone: {name}", sizes[name], sizes[TEACHER_ROW], f"{TEACHER_ROW}'s"))
    stages = {name: [list(run.stages) for run in runs[name]] for name in (SHARDS_ROW, RUNGS_ROW)}
    return Measured(figures, {"seconds": seconds, "stages": stages})


def weights(place: Place) -> Measured:
    """Bytes of all rungs against the teacher's, by dtype; and the speed of splitting and merging on one thread."""
    figures: list[Figure] = []
    torch.set_num_threads(1)
    for dtype in _DTYPES:
        name = str(dtype).removeprefix("torch.")
        with TemporaryDirectory(dir=place.data) as folder:
            model = PWLForImageClassification.from_pretrained(place.repository(), dtype=dtype)
            model.save_pretrained(folder)
            model = PWLForImageClassification.from_pretrained(folder)
            model.add_tier()
            model.save_pretrained(folder)
            manifest = Repository.open(folder).manifest()
            figures += _sizes(manifest, name)
            figures += _speeds(model, Path(folder), name, place.repeats)
    return Measured(figures)


def _sizes(manifest: Manifest, dtype: str) -> list[Figure]:
    shards = sum(entry.bytes for entry in manifest.files if entry.path.startswith("teacher/"))
    ladder = sum(entry.bytes for stage in manifest.stages for entry in stage.files)
    tier = sum(entry.bytes for entry in manifest.files if entry.tier_block is not None)
    low = sum(entry.bytes for entry in manifest.files if entry.path.startswith("quantised/"))
    found = {"all rungs": ladder, "low precision and refinements": tier, "low precision": low}
    base = "the teacher's shards"
    return [Figure.ratio(f"bytes, {dtype}: {name}", [size], [shards], base) for name, size in found.items()]


def _speeds(model: PWLForImageClassification, folder: Path, dtype: str, rounds: int) -> list[Figure]:
    """Of the first block that is like the others, over files in the page cache."""
    parts, count = model.parts.inventory.parts, model.num_blocks
    part = next(part for part in parts.values() if part.id.kind == "teacher" and part.id.number == min(2, count))
    stored = model.parts.values(part)
    named = {spec.checkpoint_name: stored[name].clone() for name, spec in part.specs.items()}
    size = sum(tensor.nbytes for tensor in named.values())
    block = part.id.number
    files = [folder / quantised_file(block, count), folder / refinement_file(block, count)]
    works: Mapping[str, Any] = {
        "splitting": lambda: split(named, 8),
        "merging": lambda: read_split(part.specs, files, next(iter(named.values())).dtype),
        "low precision": lambda: read_split(part.specs, files[:1], next(iter(named.values())).dtype),
    }
    figures = []
    for name, work in works.items():
        work()
        speeds = []
        for _ in range(rounds):
            start = time.perf_counter()
            work()
            speeds.append(size / 1e9 / (time.perf_counter() - start))
        figures.append(Figure.of(f"{name}, {dtype}", speeds, "GB/s"))
    return figures
