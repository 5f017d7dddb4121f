"""The most memory that PWL and its alternatives take until the teacher answers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.speed.figures import Figure, Measured, Place
from benchmarks.speed.hub import serving
from benchmarks.speed.measures.alternatives import MAPPED_WAY, TEACHER_WAY, ways
from benchmarks.speed.measures.timeline import answer, task_of
from benchmarks.speed.memory import watch


def memory(place: Place) -> Measured:
    """Above that of the imports, each in a fresh process with an empty cache. One round."""
    known = {name: way for name, way in ways(place).items() if name != MAPPED_WAY}
    folders = {way.hub_id: way.folder for way in known.values()}
    with (
        TemporaryDirectory(dir=place.data) as home,
        serving(folders, place.data / f"{place.name}-hub") as server,
    ):
        works = {n: (f"{answer.__module__}:{answer.__name__}", task_of(way, place, home)) for n, way in known.items()}
        seen = watch(works, server.environment(Path(home)))
    peaks = {
        name: max(sample.proportional for sample in found.samples) - found.baseline.proportional
        for name, found in seen.items()
    }
    whole = peaks.pop(TEACHER_WAY)
    figures = [Figure.ratio(f"peak: {name}", [peak], [whole], TEACHER_WAY) for name, peak in peaks.items()]
    return Measured([*figures, Figure.of(f"peak: {TEACHER_WAY}", [whole / 1e6], "MB")])
