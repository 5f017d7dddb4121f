"""Repositories with graphs, exported once a session, and what torch answers at each of their stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification, runtime
from pwl_hf.runtime import RuntimeModel
from tests.exporting.traces import traced_once
from tests.hub import HubServer
from tests.once import made_once
from tests.repository.helpers import publish
from tests.runtime.helpers import NUM_STAGES, Expected, graph_model
from tests.streaming.helpers import own_threads, until
from tests.task_models import exported_task_model
from tests.tiny import tiny_images

# As the tiny networks take images.
_PROCESSOR = {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": True, "size": {"height": 16, "width": 16}}

Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a family's tiny model with its graphs, not to be written to; with statistics of masks."""

    @cache
    def export(family: str = "vit") -> Path:
        def make(folder: Path) -> None:
            model = graph_model(family)
            if family == "pwl_vgg":
                for mask in model.schedule[1:-1]:
                    model.estimate_statistics(tiny_images(family, 8, seed=3), mask)
            folder.mkdir()
            (folder / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
            with traced_once():
                model.export(folder, image_size=16)

        return made_once(tmp_path_factory, f"runtime-{family}", make)

    return export


@pytest.fixture(scope="session")
def exported_task(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The folder of a tiny model of another task with its graphs, not to be written to."""

    return partial(exported_task_model, tmp_path_factory)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the ViT's repository, to be changed."""
    return shutil.copytree(exported(), tmp_path / "copy")


@pytest.fixture(scope="session")
def expected(exported: Exported) -> Callable[..., Expected]:
    """What each stage of a family answers: by torch, and by models of the runtime that never changed."""

    @cache
    def of(family: str = "vit") -> Expected:
        images = tiny_images(family, seed=1)
        with torch.no_grad():
            by_torch = [
                PWLForImageClassification.from_pretrained(exported(family), stage=stage)(images).logits.numpy()
                for stage in range(NUM_STAGES + 1)
            ]
        pixels = images.numpy()
        own = [
            runtime.load(exported(family), stage=stage, threads=1).logits(pixel_values=pixels)
            for stage in range(NUM_STAGES + 1)
        ]
        return Expected(pixels, by_torch, own)

    return of


@pytest.fixture
def load(exported: Exported) -> Callable[..., RuntimeModel]:
    """Load a family from its folder."""

    def from_folder(family: str = "vit", **options: object) -> RuntimeModel:
        return runtime.load(exported(family), **{"threads": 1, **options})

    return from_folder


@pytest.fixture
def pull(hub: HubServer, repo_id: str, exported: Exported, tmp_path: Path) -> Callable[..., RuntimeModel]:
    """Publish the ViT and load it from the Hub, at first through an empty cache."""

    def from_hub(**options: object) -> RuntimeModel:
        if repo_id not in hub.store.repositories():
            publish(hub, repo_id, exported())
        return runtime.load(repo_id, **{"cache_dir": tmp_path / "cache", "threads": 1, **options})

    return from_hub


@pytest.fixture(autouse=True)
def _no_stream_left() -> Iterator[None]:
    yield
    until(lambda: not own_threads())
