"""What the tests of the benchmarks share."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

import pytest

from benchmarks.recipes.definitions import Definitions, load_definitions
from benchmarks.speed.figures import Place
from benchmarks.speed.pairs import pairs
from tests.benchmarks.stand_ins import write_definitions
from tests.children import Child


@pytest.fixture
def definitions(tmp_path) -> Definitions:
    return load_definitions(write_definitions(tmp_path / "definitions"))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the benchmarks are forks of one that has torch: for what is not about their imports or memory."""
    monkeypatch.setattr("benchmarks.speed.peers.subprocess", SimpleNamespace(Popen=Child, PIPE=subprocess.PIPE))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The pair `tiny`, whose repository has its graphs once they were asked for."""
    return Place("tiny", pairs()["tiny"], tmp_path_factory.mktemp("speed"), repeats=2)
