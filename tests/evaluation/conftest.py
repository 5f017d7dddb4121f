"""A model of the digits, saved once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.evaluation.helpers import save_digits_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny, untrained ViT of the digits with its image processor; not to be written to."""
    return save_digits_model(tmp_path_factory.mktemp("evaluation") / "digits-pwl")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(saved, tmp_path / "digits-pwl")
