"""Repositories exported once a session; a kind of layer is traced once for all tests."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from pwl_hf.cli import main
from tests.exporting.helpers import small_images, small_model
from tests.exporting.odd_net import odd_model, registered
from tests.exporting.traces import traced_once
from tests.task_models import exported_task_model
from tests.tiny import WITH_BATCH_NORM

Exported = Callable[[str], Path]


@pytest.fixture(autouse=True, scope="module")
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="session")
def _exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    @cache
    def export(name: str) -> Path:
        model, folder = small_model(name), tmp_path_factory.mktemp(name) / "repo"
        if name in WITH_BATCH_NORM:
            model.estimate_statistics(small_images(name, 8), "TS")
        model.export(folder, image_size=small_images(name).shape[-1])
        return folder

    return export


@pytest.fixture
def exported(_exported: Exported, _traced_once: None) -> Exported:
    """The folder of an exported repository of a kind; not to be written to."""
    return _exported


@pytest.fixture
def vit(exported: Exported) -> Path:
    """That of the tiny ViT."""
    return exported("vit")


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Exported:
    """A copy of it, to be changed."""

    def copy(name: str) -> Path:
        return shutil.copytree(exported(name), tmp_path / f"{name}-copy")

    return copy


@pytest.fixture
def folder(tmp_path: Path, odd_net: None) -> Path:
    """A saved repository of it, without graphs."""
    odd_model().save_pretrained(tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture
def odd_net() -> Iterator[None]:
    """`tests.exporting.odd_net` is a family."""
    with registered():
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line: its status, and what it says on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pwl-hf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of texts with its graphs, not to be written to."""

    return exported_task_model(tmp_path_factory, "texts")
