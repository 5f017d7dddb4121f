"""Models of a teacher in low precision too, and their folders."""

from __future__ import annotations

from pathlib import Path

import torch

from pwl_hf import PWLForImageClassification
from tests.tiny import WITH_BATCH_NORM, tiny_images, tiny_model

LADDER = ("SSSS", "QSSS", "QQSS", "QQQS", "QQQQ", "TQQQ", "TTQQ", "TTTQ", "TTTT")


def with_tier(family: str = "vit", bits: int = 8, dtype: torch.dtype = torch.float32) -> PWLForImageClassification:
    model = tiny_model(family).to(dtype)
    if family in WITH_BATCH_NORM:
        model.estimate_statistics(tiny_images(family, 8, seed=3).to(dtype), ["TSSS", "TTSS"])
    model.add_tier(bits)
    return model


def without_shards(folder: Path, to: Path) -> Path:
    """A copy of a repository whose exact blocks can be had by refinement alone."""
    for path, content in ((p.relative_to(folder), p.read_bytes()) for p in folder.rglob("*") if p.is_file()):
        if not path.as_posix().startswith("teacher/model-"):
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_bytes(content)
    return to
