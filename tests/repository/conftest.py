"""Repositories saved once a session, and copies of them to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from pwl_hf import PWLForImageClassification
from tests.tiny import WITH_BATCH_NORM, tiny_images, tiny_model

SavedRepo = Callable[[str], Path]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedRepo:
    """The folder of a family's repository; not to be written to. With statistics, where there is BatchNorm."""

    @cache
    def save(family: str) -> Path:
        model, folder = tiny_model(family), tmp_path_factory.mktemp(family) / "repo"
        if family in WITH_BATCH_NORM:
            for mask in ("TSSS", "TTSS", "TTTS", "STST"):
                model.estimate_statistics(tiny_images(family, 8), mask)
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def standalone(saved: SavedRepo, tmp_path: Path) -> SavedRepo:
    """A family's repository with its one file of code."""

    def save(family: str) -> Path:
        folder = tmp_path / f"{family}-standalone"
        PWLForImageClassification.from_pretrained(saved(family)).save_pretrained(folder, remote_code="standalone")
        return folder

    return save


@pytest.fixture
def copied(saved: SavedRepo, tmp_path: Path) -> SavedRepo:
    """A copy of a family's repository, to be changed."""

    def copy(family: str) -> Path:
        return shutil.copytree(saved(family), tmp_path / f"{family}-copy")

    return copy
