"""PWL against its alternatives: time and bytes to the first answer, and to the teacher's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.bare import Stopwatch
from benchmarks.speed.child import Task
from benchmarks.speed.figures import TEACHER_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.hub import PWL, RUNGS, STUDENT, Asked, serving, total_bytes
from benchmarks.speed.launching import PWL_CLASS, Run, from_empty_cache, plain_class
from benchmarks.speed.measures.alternatives_files import alternatives
from benchmarks.speed.measures.alternatives_ways import Accelerate, Bf16First, Both, BothMapped, Int8First
from benchmarks.speed.timing import drop_from_page_cache, interleaved
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of

TEACHER_WAY, STUDENT_WAY, PWL_WAY, RUNGS_WAY = TEACHER_ROW, "the student for ever", "PWL", "PWL with rungs"
INT8_WAY, BF16_WAY = "int8 first, then the teacher", "bf16 first, then the teacher"
ACCELERATE_WAY, BOTH_WAY = "accelerate's load_checkpoint_and_dispatch", "both networks from one file"
MAPPED_WAY = "both networks from one file, mapped"

# The repository with the files of all alternatives.
ALTERNATIVES = "org/alternatives"
_WAYS = "benchmarks.speed.measures.alternatives_ways"


@dataclass(frozen=True)
class Way:
    """An alternative, or PWL.

    Args:
        network: Its class.
        where: The class as `Task` takes it.
        folder: Its files.
        hub_id: Its repository on the Hub.
        task: The `way` of its `Task`.
    """

    network: Any
    where: str
    folder: Path
    hub_id: str
    task: str

    @property
    def grows(self) -> bool:
        """True if its weights change after the first answer."""
        return self.task != "first"


def ways(place: Place) -> dict[str, Way]:
    """All ways for a pair, by name; the teacher is the first."""
    folder, others = place.repository().resolve(), alternatives(place).resolve()
    plain, where = family_of(place.pair.teacher).model_class(), plain_class(place)

    def other(network: type, task: str) -> Way:
        return Way(network, f"{_WAYS}:{network.__name__}", others, ALTERNATIVES, task)

    return {
        TEACHER_WAY: Way(plain, where, others, ALTERNATIVES, "first"),
        STUDENT_WAY: Way(plain, where, folder / "student", STUDENT, "first"),
        INT8_WAY: other(Int8First, "grow"),
        BF16_WAY: other(Bf16First, "grow"),
        ACCELERATE_WAY: other(Accelerate, "first"),
        BOTH_WAY: other(Both, "grow"),
        MAPPED_WAY: other(BothMapped, "grow"),
        PWL_WAY: Way(PWLForImageClassification, PWL_CLASS, folder, PWL, "stream"),
        RUNGS_WAY: Way(PWLForImageClassification, PWL_CLASS, place.with_tier().resolve(), RUNGS, "stream"),
    }


def warm(place: Place) -> Measured:
    """From local files in the page cache; PWL's are verified before."""
    return _local(place, cold=False)


def cold(place: Place) -> Measured:
    """From local files, dropped from the page cache before each. Two thirds of the rounds."""
    return _local(place, cold=True)


def hub(place: Place) -> Measured:
    """From a Hub, with an empty cache, each in a fork of a process whose imports are done. A quarter of the rounds."""
    # One mapped file is the same download: what differs takes milliseconds.
    known, size = {name: way for name, way in ways(place).items() if name != MAPPED_WAY}, place.pair.size
    tasks = {name: Task(way.where, way.hub_id, size, way.task) for name, way in known.items()}
    rehearsed = [replace(tasks[name], source=str(way.folder)) for name, way in known.items()]
    # From a folder a stream passes low precision over, and would leave that to be imported.
    rehearsed.append(replace(rehearsed[list(known).index(RUNGS_WAY)], way="grow"))
    with serving({way.hub_id: way.folder for way in known.values()}, place.data / f"{place.name}-hub") as server:
        runs, asked = from_empty_cache(place, server, tasks, rehearsed, place.rounds(1, of=4))
    whole = {name: [run.seconds for run in found] for name, found in runs.items()}
    first = {name: [run.marks.get("first", run.seconds) for run in found] for name, found in runs.items()}
    return Measured(
        [*_times(known, first, whole), *_bytes(known, runs, asked)], {"first answer": first, "whole way": whole}
    )


def _local(place: Place, *, cold: bool) -> Measured:
    # A folder that has the shards passes low precision over, which would save nothing there.
    known = {name: way for name, way in ways(place).items() if name != RUNGS_WAY}
    pixel_values = place.pair.pixel_values()
    watches = {name: Stopwatch("first", "rest") for name in known}

    def thing(way: Way, watch: Stopwatch) -> Callable[[], object]:
        def load() -> object:
            watch.start()
            model = way.network.from_pretrained(way.folder)
            logits = model(pixel_values).logits
            watch.lap("first")
            if way.grows:
                for _ in range(model.num_stages):
                    model.load_next_stage()
                logits = model(pixel_values).logits
            watch.lap("rest")
            return model, logits

        return load

    def drop() -> None:
        if cold:
            for folder in {way.folder for way in known.values()}:
                drop_from_page_cache(folder)

    rounds = place.rounds(2, of=3) if cold else place.repeats
    with torch.inference_mode():
        whole = interleaved({name: thing(way, watches[name]) for name, way in known.items()}, rounds, drop)
    # The first round does not count.
    first = {name: watch.seconds["first"][1:] for name, watch in watches.items()}
    return Measured(_times(known, first, whole), {"first answer": first, "whole way": whole})


def _times(
    known: Mapping[str, Way], first: Mapping[str, Sequence[float]], whole: Mapping[str, Sequence[float]]
) -> list[Figure]:
    """First answers, and whole ways of what grows, relative to the teacher's time."""
    base = whole[TEACHER_WAY]
    of_first = {f"first answer: {name}": seconds for name, seconds in first.items() if name != TEACHER_WAY}
    of_whole = {f"the teacher's answer: {name}": whole[name] for name, way in known.items() if way.grows}
    figures = ratios({TEACHER_WAY: base} | of_first | of_whole, TEACHER_WAY)
    return [*figures, Figure.of(TEACHER_WAY, [1e3 * seconds for seconds in base], "ms")]


def _bytes(
    known: Mapping[str, Way], runs: Mapping[str, Sequence[Run]], asked: Mapping[str, Sequence[Sequence[Asked]]]
) -> list[Figure]:
    """Bytes that the Hub sent until the first answer, and in all."""
    figures = []
    for name in known:
        before = [
            total_bytes(
                [request for request in requests if request.at - run.start < run.marks.get("first", run.seconds)]
            )
            for run, requests in zip(runs[name], asked[name], strict=True)
        ]
        figures.append(_megabytes(f"bytes at the first answer: {name}", before))
    for name, way in known.items():
        if way.grows:
            figures.append(_megabytes(f"bytes in all: {name}", [total_bytes(requests) for requests in asked[name]]))
    return figures


def _megabytes(name: str, sizes: Sequence[int]) -> Figure:
    return Figure.of(name, [size / 1e6 for size in sizes], "MB")
