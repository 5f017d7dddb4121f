"""Repositories saved once a session, in a folder and on the Hub; no stream outlives its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification
from tests.hub import HubServer
from tests.repository.helpers import publish
from tests.streaming.helpers import Answers, own_threads, until
from tests.tiny import WITH_BATCH_NORM, tiny_images, tiny_model

Saved = Callable[[str], Path]
PREFIXES = ["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folder of a family's `tiny_model`, with statistics for every mixed stage where there is BatchNorm."""

    @cache
    def save(family: str) -> Path:
        model, folder = tiny_model(family), tmp_path_factory.mktemp(family) / "repo"
        if family in WITH_BATCH_NORM:
            for mask in PREFIXES[1:4]:
                model.estimate_statistics(tiny_images(family, 8, seed=3), mask)
        model.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def load(saved: Saved) -> Callable[..., PWLForImageClassification]:
    """Load a family from its folder."""

    def from_folder(family: str = "vit", **kwargs: object) -> PWLForImageClassification:
        return PWLForImageClassification.from_pretrained(saved(family), **kwargs)

    return from_folder


@pytest.fixture
def pull(hub: HubServer, repo_id: str, saved: Saved, tmp_path: Path) -> Callable[..., PWLForImageClassification]:
    """Publish a family and load it from the Hub, at first through an empty cache."""

    def from_hub(family: str = "vit", **kwargs: object) -> PWLForImageClassification:
        if repo_id not in hub.store.repositories():
            publish(hub, repo_id, saved(family))
        return PWLForImageClassification.from_pretrained(repo_id, cache_dir=tmp_path / "cache", **kwargs)

    return from_hub


@pytest.fixture(scope="session")
def answers(saved: Saved) -> Callable[..., Answers]:
    """What each prefix stage answers to a family's images, from models that never changed."""

    @cache
    def of(family: str = "vit", seed: int = 1) -> Answers:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        images = tiny_images(family, seed=seed)
        with torch.no_grad():
            found = [
                PWLForImageClassification.from_pretrained(saved(family), stage=stage)(images).logits
                for stage in range(5)
            ]
        torch.set_num_threads(threads)
        return Answers(images, found)

    return of


@pytest.fixture(autouse=True)
def _one_thread_and_no_stream_left() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    until(lambda: not own_threads())
