"""Repositories as they are deployed: with an image processor, and with graphs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transformers import ViTImageProcessorPil

from benchmarks.speed.figures import Place
from pwl_hf.exporting import export_repository
from pwl_hf.modeling.publishing.push import Target


def served_repository(place: Place, plain: Path | None = None) -> Path:
    """A repository with what a server needs besides its networks; made if it is not there. Weights are linked.

    Args:
        place: Whose pair it is.
        plain: The folder of a network of transformers; None for the pair's PWL repository.
    """
    source = place.repository() if plain is None else plain
    folder = place.data / f"{source.name}-served"
    if not (folder / "preprocessor_config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, copy_function=os.link, ignore=shutil.ignore_patterns("student"))
        size = {"height": place.pair.size, "width": place.pair.size}
        ViTImageProcessorPil(size=size).save_pretrained(folder)
        if plain is None:
            export_repository(str(folder), target=Target(str(folder)))
    return folder
