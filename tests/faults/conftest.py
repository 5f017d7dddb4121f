"""One repository of every kind of file, and a client that does not wait."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pwl_hf import RetryPolicy
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.quantising import quantise_repository
from tests.hub import HubServer
from tests.repository.helpers import load, logits, publish
from tests.tiny import tiny_images, tiny_model

FAMILY = "resnet"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ResNet repository with statistics; not to be written to."""
    model, folder = tiny_model(FAMILY), tmp_path_factory.mktemp("faults") / "repo"
    for mask in ("TSSS", "TTSS", "TTTS"):
        model.estimate_statistics(tiny_images(FAMILY, 8), mask)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_rungs(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the teacher in low precision too; not to be written to."""
    folder = tmp_path_factory.mktemp("faults") / "rungs"
    quantise_repository(str(saved), folder, target=Target("none"))
    return folder


@pytest.fixture(scope="session")
def rung_answers(saved_rungs: Path) -> list[torch.Tensor]:
    """The logits of each of its stages, as the folder gives them."""
    return [logits(load(saved_rungs, stage=stage)) for stage in range(9)]


@pytest.fixture(scope="session")
def answers(saved: Path) -> list[torch.Tensor]:
    """The logits of each stage, as the folder gives them."""
    return [logits(load(saved, stage=stage)) for stage in range(5)]


@pytest.fixture
def pushed(hub: HubServer, repo_id: str, saved: Path) -> str:
    """That repository on the Hub; its name."""
    publish(hub, repo_id, saved)
    return repo_id


@pytest.fixture
def pushed_rungs(hub: HubServer, repo_id: str, saved_rungs: Path) -> str:
    """The one with low precision on the Hub; its name."""
    publish(hub, repo_id, saved_rungs)
    return repo_id


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub-cache"


@pytest.fixture
def quick() -> RetryPolicy:
    """Two tries without waiting."""
    return RetryPolicy(tries=2, first_wait=0.001, max_wait=0.01)


@pytest.fixture
def unhurried_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own waits between its own tries take no time."""
    clock = SimpleNamespace(**{name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")})
    clock.sleep = lambda seconds: time.sleep(min(seconds, 0.001))
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", clock)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> float:
    """huggingface_hub waits this long for a byte, in seconds."""
    seconds = 0.1
    constants: Any = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_DOWNLOAD_TIMEOUT", seconds)
    monkeypatch.setattr(f"{constants}.HF_HUB_ETAG_TIMEOUT", seconds)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", seconds)
    return seconds
