"""What answers at which second, and with how much memory: PWL, the teacher alone and the student alone, from a Hub.

Imports are done before, so the seconds are those of downloading, loading and answering. One run each: it is for a
picture; spreads are in the measures `hub` and `memory`.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from benchmarks.speed.figures import Figure, Measured, Place
from benchmarks.speed.fresh import Mark
from benchmarks.speed.hub import BANDWIDTH, LATENCY, serving
from benchmarks.speed.measures.alternatives import INT8_WAY, PWL_WAY, STUDENT_WAY, TEACHER_WAY, Way, ways
from benchmarks.speed.measures.alternatives_accuracy import images_of
from benchmarks.speed.memory import Watched, watch
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.repository.layout import MANIFEST_FILE, STUDENT_FILE
from pwl_hf.modeling.repository.manifest import Manifest

_START = "start"
# The teacher of the pair vit-b. The bandwidth for a trained pair, which is tiny, is scaled to its teacher.
_REFERENCE_BYTES = 343e6
# Seconds between two looks at the stage of a stream.
_PATIENCE = 0.002
# Of each way, at most: each span of time keeps its highest sample.
_MEMORY_ROWS = 300


def timeline(place: Place) -> Measured:
    """Each in a fresh process. A trained pair has accuracies, and int8 first as a fourth."""
    known = ways(place)
    drawn = [PWL_WAY, TEACHER_WAY, STUDENT_WAY, *([INT8_WAY] if place.pair.trained else [])]
    teacher_bytes = (known[TEACHER_WAY].folder / STUDENT_FILE).stat().st_size
    bandwidth = BANDWIDTH * (teacher_bytes / _REFERENCE_BYTES if place.pair.trained else 1)
    with (
        TemporaryDirectory(dir=place.data) as home,
        serving(
            {known[name].hub_id: known[name].folder for name in drawn},
            place.data / f"{place.name}-hub",
            bandwidth=bandwidth,
        ) as server,
    ):
        works = {name: (f"{__name__}:answer", task_of(known[name], place, home)) for name in drawn}
        seen = watch(works, server.environment(Path(home)))
    levels = _accuracies(place, known) if place.pair.trained else _blocks(place)
    answers = {name: _answers(found, levels[name]) for name, found in seen.items()}
    whole = answers[TEACHER_WAY][0][0]
    figures = [
        *(
            Figure.of(f"first answer: {name}", [answers[name][0][0] / whole], "x", TEACHER_WAY)
            for name in drawn
            if name != TEACHER_WAY
        ),
        Figure.of(f"the teacher's answer: {PWL_WAY}", [answers[PWL_WAY][-1][0] / whole], "x", TEACHER_WAY),
    ]
    series = {
        "pair": place.name,
        "bandwidth": bandwidth,
        "latency": LATENCY,
        "level": "accuracy" if place.pair.trained else "blocks",
        "ways": {
            name: {
                "answers": answers[name],
                "memory": thinned(seen[name].series()["memory"], _MEMORY_ROWS),
            }
            for name in drawn
        },
    }
    return Measured(figures, series)


def answer(mark: Mark, where: str, source: str, local: str, size: int, cache_dir: str) -> None:
    """Load from a Hub, and answer an image then and after each change of weights, with a mark after each answer.

    Args:
        mark: Called at the beginning and after each answer.
        where: The class, `module:name`.
        source: The Hub id.
        local: The same as a folder, for a rehearsal that imports what is imported late.
        size: Height and width of the image.
        cache_dir: The Hub cache.
    """
    module, name = where.split(":")
    network = getattr(import_module(module), name)
    images = torch.zeros(1, 3, size, size)
    with torch.inference_mode():
        _grow(lambda _: None, network.from_pretrained(local), images)
        with TemporaryDirectory(dir=cache_dir) as other:
            hf_hub_download(source, "config.json", cache_dir=other)
        _give_back()
        mark(_START)
        _grow(mark, network.from_pretrained(source, cache_dir=cache_dir), images)


def _grow(mark: Mark, model: Any, images: torch.Tensor) -> None:
    """Answer, and again after each further part is loaded; each mark is the number of parts."""
    model(images)
    mark("0")
    count = getattr(model, "num_stages", 0)
    if isinstance(model, PWLForImageClassification):
        answered = 0
        with model.stream_stages() as stream:
            while answered < count and stream.exception is None:
                stage = model.stage or 0
                if stage == answered:
                    time.sleep(_PATIENCE)
                    continue
                model(images)
                mark(str(stage))
                answered = stage
    else:
        for number in range(count):
            model.load_next_stage()
            model(images)
            mark(str(number + 1))


def _give_back() -> None:
    """Give the rehearsal's memory back to the kernel, so that it is not in the baseline (Linux with glibc)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def task_of(way: Way, place: Place, home: str) -> dict[str, Any]:
    """The arguments of `answer` for a way, with a Hub cache of its own below a folder."""
    cache = Path(home, way.where.replace(":", "-") + way.hub_id.replace("/", "-"))
    cache.mkdir()
    return {
        "where": way.where,
        "source": way.hub_id,
        "local": str(way.folder),
        "size": place.pair.size,
        "cache_dir": str(cache),
    }


def _answers(seen: Watched, levels: Sequence[float]) -> list[list[float]]:
    """Rows of the second and the level of each answer. A stage that is over at once has none."""
    start = seen.baseline.at
    return [[round(memory.at - start, 4), levels[int(name)]] for name, memory in seen.marks if name != _START]


def _blocks(place: Place) -> dict[str, Sequence[float]]:
    """How many of the teacher's blocks answer, by the number of parts loaded after the first answer."""
    count = place.pair.num_blocks
    return {PWL_WAY: range(count + 1), TEACHER_WAY: [count], STUDENT_WAY: [0]}


def _accuracies(place: Place, known: Mapping[str, Way]) -> dict[str, Sequence[float]]:
    """Accuracy in percent, as in `_blocks`: PWL's from its manifest, that of int8 weights measured now."""
    manifest = Manifest.from_json((known[PWL_WAY].folder / MANIFEST_FILE).read_bytes())
    stages = [100 * next(m.value for m in stage.metrics if m.name == "accuracy") for stage in manifest.stages]
    pixel_values, labels = images_of(place)
    assert labels is not None
    with torch.inference_mode():
        found = known[INT8_WAY].network.from_pretrained(known[INT8_WAY].folder)(pixel_values).logits.argmax(-1)
    int8 = 100 * (found == labels).double().mean().item()
    return {PWL_WAY: stages, TEACHER_WAY: stages[-1:], STUDENT_WAY: stages[:1], INT8_WAY: [int8, stages[-1]]}


def thinned(rows: Sequence[Sequence[float]], most: int) -> list[list[float]]:
    """Fewer samples of memory: the highest of each span of time.

    Args:
        rows: Seconds, private MB and proportional MB, in order of time.
        most: How many to keep at most.

    Returns:
        For each span that has samples: the moment of its highest one, and the two counts then, by the second count.
    """
    if len(rows) <= most:
        return [list(row) for row in rows]
    begin, end = rows[0][0], rows[-1][0]
    highest: dict[int, Sequence[float]] = {}
    for row in rows:
        span = min(int((row[0] - begin) / (end - begin) * most), most - 1)
        if span not in highest or row[2] > highest[span][2]:
            highest[span] = row
    return [list(row) for row in highest.values()]
