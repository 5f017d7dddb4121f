"""A repository that a server can be started with, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.served import save_with_processor


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny ViT with its image processor; not to be written to."""
    return save_with_processor(tmp_path_factory.mktemp("serving") / "repo")
