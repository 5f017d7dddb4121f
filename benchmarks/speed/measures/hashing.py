"""The cost of verifying a shard the first time and when it is remembered; and the bytes of each stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants

from benchmarks.speed.figures import TEACHER_ROW, Figure, Measured, Place, ratios
from benchmarks.speed.loads import by_stages, by_transformers
from benchmarks.speed.timing import interleaved
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.repository.source import Repository


def hashing(place: Place) -> Measured:
    """Local files in the page cache, one thread."""
    folder, pixel_values = place.repository(), place.pair.pixel_values()
    network = family_of(place.pair.teacher).model_class()
    repository = Repository.open(folder)
    manifest = repository.manifest()
    shards = [entry for entry in manifest.files if entry.path.startswith("teacher/")]
    grow = by_stages(folder, place.pair.num_blocks, pixel_values)
    verified, unverified = "verify the teacher's shards, first time", "all stages, never verified before"
    remembered = "verify the teacher's shards, remembered"
    things: dict[str, Callable[[], object]] = {
        TEACHER_ROW: by_transformers(network, folder / "teacher", pixel_values),
        verified: _forgetting(lambda: repository.verify(shards)),
        remembered: lambda: repository.verify(shards),
        unverified: _forgetting(grow),
        "all stages, verified before": grow,
    }
    with torch.inference_mode():
        repository.verify(manifest.files)
        times = interleaved(things, place.repeats)
    size = sum(entry.bytes for entry in shards) / 1e6
    figures = [
        *ratios(times, TEACHER_ROW, f"{TEACHER_ROW}, load and one answer"),
        Figure.of("first verification", [size / seconds for seconds in times[verified]], "MB/s"),
        Figure.of(
            "remembered verification of a shard", [1000 * seconds / len(shards) for seconds in times[remembered]], "ms"
        ),
        *(
            Figure.of(f"stage {stage.stage}", [sum(entry.bytes for entry in stage.files) / 1e6], "MB")
            for stage in manifest.stages
        ),
    ]
    return Measured(figures, {"seconds": times})


def _forgetting(work: Callable[[], object]) -> Callable[[], object]:
    """The same work, with no verification remembered."""

    def forget() -> object:
        with nothing_verified():
            return work()

    return forget


@contextmanager
def nothing_verified() -> Iterator[None]:
    """Forget what was verified, within a `with` block: `HF_HOME`, with the notes of it, is an empty folder."""
    home = constants.HF_HOME
    with tempfile.TemporaryDirectory() as empty:
        constants.HF_HOME = str(Path(empty))
        try:
            yield
        finally:
            constants.HF_HOME = home
