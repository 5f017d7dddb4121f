"""How the main figures grow with the number of stages, and with the teacher's size."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from transformers import PreTrainedConfig

from benchmarks.speed.figures import FIRST_ROW, TEACHER_ROW, WHOLE_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.fresh import Fresh, Mark
from benchmarks.speed.hub import Asked, serving, total_bytes
from benchmarks.speed.loads import by_stages, by_transformers
from benchmarks.speed.pairs import Pair, repository
from benchmarks.speed.timing import interleaved
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of

# Numbers of stages; only those that both networks have units for are measured.
STAGES = (1, 2, 4, 8, 12)

# Width, layers and heads of other teachers, by pair and name.
_TEACHERS: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "vit-b": {"ViT-S": (384, 12, 6), "ViT-B": (768, 12, 12), "ViT-L": (1024, 24, 16)},
    "tiny": {"small": (32, 4, 2), "large": (64, 6, 2)},
}


@dataclass(frozen=True)
class Variant:
    """One pair of a series.

    Args:
        name: Its name in tables.
        pair: The pair.
        folder: Its repository.
    """

    name: str
    pair: Pair
    folder: Path


def growth(place: Place) -> Measured:
    """Local files in the page cache, verified before, one thread; requests and bytes from a Hub without latency."""
    figures: list[Figure] = []
    series: dict[str, Any] = {}
    for by, variants in (("stages", of_stages(place)), ("teachers", of_teachers(place))):
        times: dict[str, dict[str, list[float]]] = {}
        for variant in variants:
            times[variant.name] = _times(variant, place.repeats)
            figures += [
                replace(figure, name=f"{variant.name}: {figure.name}")
                for figure in ratios(times[variant.name], TEACHER_ROW, f"{TEACHER_ROW}, of this repository")
            ]
        series[by] = times
    cut = of_stages(place)
    for variant, stages in zip(cut, requests([variant.folder for variant in cut], place.data), strict=True):
        name = variant.name
        # The first stage opens the repository; of the later ones the largest counts.
        first, largest = stages[0], max(stages[1:], key=total_bytes)
        for stage, found in (("stage 0", first), ("largest stage", largest)):
            figures.append(Figure.of(f"{name}: {stage}, bytes", [total_bytes(found) / 1e6], "MB"))
            figures.append(Figure.of(f"{name}: {stage}, requests", [len(found)], "requests"))
        whole = sum(total_bytes(stage) for stage in stages)
        figures.append(Figure.of(f"{name}: all stages, bytes", [whole / 1e6], "MB"))
        series.setdefault("requests", {})[name] = [[len(stage), total_bytes(stage)] for stage in stages]
    return Measured(figures, series)


def of_stages(place: Place) -> list[Variant]:
    """The pair cut into more and more blocks."""
    family = family_of(place.pair.teacher)
    most = min(family.num_units(config) for config in (place.pair.teacher, place.pair.student))
    return [
        _variant(f"{n} stages" if n > 1 else "1 stage", replace(place.pair, num_blocks=n), place)
        for n in STAGES
        if n <= most
    ]


def of_teachers(place: Place) -> list[Variant]:
    """The same student below smaller and larger teachers."""
    sizes = _TEACHERS.get(place.name, {})
    return [
        _variant(name, replace(place.pair, teacher=_resized(place.pair.teacher, *size)), place)
        for name, size in sizes.items()
    ]


def requests(folders: Sequence[Path], room: Path) -> list[list[list[Asked]]]:
    """The requests of a fresh process with an empty cache, by repository and stage, from stage 0 on.

    Args:
        folders: The repositories that the Hub serves.
        room: The folder for temporary copies.
    """
    served = {f"org/pwl-{number}": folder for number, folder in enumerate(folders)}
    found: dict[str, list[list[Asked]]] = {name: [] for name in served}
    with (
        tempfile.TemporaryDirectory(dir=room) as root,
        tempfile.TemporaryDirectory(dir=room) as home,
        serving(served, Path(root), bandwidth=None, latency=0.0) as hub,
        Fresh(f"{__name__}:grow", {"sources": list(served)}, hub.environment(Path(home))) as process,
    ):
        process.run(lambda name, at: found[name].append(hub.take()))
    return list(found.values())


def grow(mark: Mark, sources: list[str]) -> None:
    """Load models and all their stages, with a mark of the model's name at each stage."""
    for source in sources:
        with tempfile.TemporaryDirectory(dir=constants.HF_HOME) as cache:
            model = PWLForImageClassification.from_pretrained(source, cache_dir=cache)
            mark(source)
            while model.stage != model.num_stages:
                model.load_next_stage()
                mark(source)


def _times(variant: Variant, repeats: int) -> dict[str, list[float]]:
    network = family_of(variant.pair.teacher).model_class()
    pixel_values = variant.pair.pixel_values()
    things = {
        TEACHER_ROW: by_transformers(network, variant.folder / "teacher", pixel_values),
        FIRST_ROW: by_stages(variant.folder, 0, pixel_values),
        WHOLE_ROW: by_stages(variant.folder, variant.pair.num_blocks, pixel_values),
    }
    with torch.inference_mode():
        return interleaved(things, repeats)


def _variant(name: str, pair: Pair, place: Place) -> Variant:
    if pair.num_blocks == place.pair.num_blocks and pair.teacher.to_dict() == place.pair.teacher.to_dict():
        return Variant(name, pair, place.repository())
    return Variant(name, pair, repository(pair, place.data / f"{place.name}-{name.replace(' ', '-')}"))


def _resized(config: PreTrainedConfig, width: int, layers: int, heads: int) -> PreTrainedConfig:
    changes = {
        "hidden_size": width,
        "intermediate_size": width * config.intermediate_size // config.hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    return type(config)(**(config.to_dict() | changes))
