"""Memory on the whole way to the teacher, against what the networks' files hold; and the way back down."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.answering import Client, requests_of
from benchmarks.speed.figures import STUDENT_ROW, TEACHER_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.fresh import Mark
from benchmarks.speed.hub import environment
from benchmarks.speed.memory import Watched, memory_of, watch
from benchmarks.speed.pairs import Pair, pairs
from benchmarks.speed.timing import interleaved
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.repository.manifest import Manifest

WAY = "the whole way"
SUM = "bytes of teacher, student and one block"

# Requests at each stage, and of the networks alone.
_REQUESTS = 5


def peak(place: Place) -> Measured:
    """The peak memory of a model that answers while it grows from its student into its teacher.

    Every thing has a fresh process; a third as many rounds as elsewhere, for its imports take the time.
    """
    folder = place.repository()
    allowed = _allowed(folder)
    found: dict[str, list[Watched]] = {WAY: [], TEACHER_ROW: [], STUDENT_ROW: []}
    works: dict[str, tuple[str, dict[str, Any]]] = {
        WAY: (f"{__name__}:grow", {"folder": str(folder), "pair": place.name}),
        TEACHER_ROW: (f"{__name__}:load", {"folder": str(folder / "teacher"), "pair": place.name}),
        STUDENT_ROW: (f"{__name__}:load", {"folder": str(folder / "student"), "pair": place.name}),
    }
    for _ in range(place.rounds(1, of=3)):
        with tempfile.TemporaryDirectory() as home:
            # A new home remembers no verification: files are hashed on the way.
            for name, seen in watch(works, environment(Path(home))).items():
                found[name].append(seen)
    return Measured(_peaks(found, allowed), {name: runs[-1].series() for name, runs in found.items()})


def grow(mark: Mark, folder: str, pair: str) -> None:
    """From the student to the teacher in a stream, while requests are answered."""
    pixel_values = _ready(pair)
    mark("start")
    model = PWLForImageClassification.from_pretrained(folder)
    with Client(requests_of(model, pixel_values)) as client:
        client.wait(_REQUESTS)
        mark("stage 0")

        def on_stage(_: object, stage: int) -> None:
            client.wait(_REQUESTS)
            mark(f"stage {stage}")

        with model.stream_stages(on_stage=on_stage):
            pass


def load(mark: Mark, folder: str, pair: str) -> None:
    """One network with transformers' own loader, and some answers."""
    pixel_values = _ready(pair)
    mark("start")
    model = family_of(pairs()[pair].teacher).model_class().from_pretrained(folder)
    with torch.inference_mode():
        for _ in range(_REQUESTS):
            model(pixel_values)
    mark("answered")


def _ready(pair: str) -> torch.Tensor:
    """Import what is imported late; the images of the requests."""
    used: Pair = pairs()[pair]
    family_of(used.teacher).model_class()
    return used.pixel_values()


def _allowed(folder: Path) -> int:
    """The bytes of teacher, student and the teacher's largest block, by the manifest."""
    manifest = Manifest.from_json((folder / "pwl_index.json").read_bytes())
    networks = [
        sum(entry.bytes for entry in manifest.files_for(manifest.schedule.mask(stage)))
        for stage in (0, manifest.num_stages)
    ]
    shards = [entry.bytes for entry in manifest.files if entry.path.startswith("teacher/")]
    return int(sum(networks) + max(shards))


def _peaks(found: dict[str, list[Watched]], allowed: int) -> list[Figure]:
    private, shared = "private", "proportional"

    def peaks(name: str, count: str) -> list[float]:
        return [float(seen.peak(count)) for seen in found[name]]

    figures = [
        Figure.of("peak, private", [own / allowed for own in peaks(WAY, private)], "x", SUM),
        Figure.of("peak, each page once", [own / allowed for own in peaks(WAY, shared)], "x", SUM),
        *ratios({name: peaks(name, shared) for name in found}, TEACHER_ROW, f"{TEACHER_ROW}, each page once"),
    ]
    for name in found:
        for count, title in ((private, "private"), (shared, "each page once")):
            figures.append(Figure.of(f"{name}: peak, {title}", [value / 1e6 for value in peaks(name, count)], "MB"))
        highest = [seen.highest_resident / 1e6 for seen in found[name]]
        figures.append(Figure.of(f"{name}: peak, resident", highest, "MB"))
    return figures


def step_down(place: Place) -> Measured:
    """From the teacher to the student and back, files local and verified, each with one answer."""
    folder, pixel_values = place.repository(), place.pair.pixel_values()
    network = family_of(place.pair.teacher).model_class()
    model = PWLForImageClassification.from_pretrained(folder, stage="teacher")
    top = model.num_stages

    def load_teacher() -> object:
        loaded = network.from_pretrained(folder / "teacher")
        return loaded, loaded(pixel_values).logits

    def move(stage: int) -> object:
        model.set_stage(stage)
        return model(pixel_values).logits

    def held() -> float:
        gc.collect()
        return memory_of().proportional / 1e6

    things: dict[str, Callable[[], object]] = {
        TEACHER_ROW: load_teacher,
        "down to the student, one answer": partial(move, 0),
        "up to the teacher, one answer": partial(move, top),
    }
    released = []
    with torch.inference_mode():
        model(pixel_values)
        times = interleaved(things, place.repeats)
        for _ in range(place.repeats):
            before = held()
            move(0)
            released.append(before - held())
            move(top)
    figures = [
        *ratios(times, TEACHER_ROW, f"{TEACHER_ROW}, load and one answer"),
        Figure.of("memory released on the way down", released, "MB"),
    ]
    return Measured(figures, {"seconds": times, "released": released})
