"""Saved repositories, one for each family, made once. Not to be written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification
from tests.modeling.tiers import with_tier
from tests.tiny import WITH_BATCH_NORM, tiny_images, tiny_model

Saved = Callable[[str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A family's `tiny_model` as a repository; those with BatchNorm have statistics for TSSS and SSTT."""
    made: dict[str, Path] = {}

    def path_of(model_type: str) -> Path:
        if model_type not in made:
            model = tiny_model(model_type)
            if model_type in WITH_BATCH_NORM:
                for mask in ("TSSS", "SSTT"):
                    model.estimate_statistics(tiny_images(model_type, 8, seed=3), mask)
            made[model_type] = tmp_path_factory.mktemp("saved") / model_type
            model.save_pretrained(made[model_type])
        return made[model_type]

    return path_of


@pytest.fixture
def load(saved: Saved) -> Callable[..., PWLForImageClassification]:
    """Load a family's saved repository."""

    def load_family(model_type: str, **kwargs: object) -> PWLForImageClassification:
        return PWLForImageClassification.from_pretrained(saved(model_type), **kwargs)

    return load_family


@pytest.fixture(autouse=True)
def _seed_and_one_thread() -> Iterator[None]:
    # Tiny tensors: more threads only wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def saved_tier(tmp_path_factory):
    """The folder of a family's model with a tier, not to be written to."""

    @cache
    def save(family: str = "vit", bits: int = 8, dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path_factory.mktemp(family) / "repo"
        with_tier(family, bits, dtype).save_pretrained(folder)
        return folder

    return save
