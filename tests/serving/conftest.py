"""A repository that a server can be started with, made once a session, and what it is served on."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pwl_hf import PWLForImageClassification
from tests.exporting.traces import traced_once
from tests.once import made_once
from tests.serving.served import Served, save_with_processor, serving
from tests.serving.slim import slim_environment


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny ViT with its image processor; not to be written to."""
    return save_with_processor(tmp_path_factory.mktemp("serving") / "repo")


@pytest.fixture(scope="session")
def exported(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its graphs; not to be written to."""

    def make(folder: Path) -> None:
        shutil.copytree(repository, folder)
        with traced_once():
            PWLForImageClassification.from_pretrained(folder, keep_all=True).export(folder)

    return made_once(tmp_path_factory, "served", make)


@pytest.fixture(scope="session")
def slim_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has what the server needs on the runtime, and neither torch nor transformers."""
    return slim_environment(tmp_path_factory.mktemp("slim") / "venv", ["pwl-hf[runtime]", "fastapi", "uvicorn"])


@dataclass(frozen=True)
class Backend:
    """What a model is served on.

    Args:
        name: "torch" or "runtime".
        folder: A repository that it can serve.
        python: The interpreter of its server; None for the tests' own.
    """

    name: str
    folder: Path
    python: Path | None

    def serving(self, arguments: list[str], env: dict[str, str]) -> AbstractContextManager[Served]:
        """A server in the checkout, in an environment that has what this needs alone."""
        more = {"PWL_RUNTIME": "1"} if self.name == "runtime" else {}
        return serving(arguments, {**env, **more}, self.python)

    def options(self) -> list[str]:
        """What `examples/serve.py` is given."""
        return ["--runtime"] if self.name == "runtime" else []

    def check(self, found: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
        """Compare predictions with torch's: to the bit on torch, in the graphs' accuracy on the runtime."""
        if self.name == "torch":
            assert found == right
        else:
            assert [item["label"] for item in found] == [item["label"] for item in right]
            assert [item["score"] for item in found] == pytest.approx([item["score"] for item in right], abs=1e-5)


@pytest.fixture(params=["torch", "runtime"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each in turn."""
    if request.param == "torch":
        return Backend("torch", request.getfixturevalue("repository"), None)
    return Backend("runtime", request.getfixturevalue("exported"), request.getfixturevalue("slim_python"))
