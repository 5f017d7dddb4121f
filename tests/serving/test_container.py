"""The Dockerfile: its steps are run in a folder; what they make answers without a Hub, and grows from one."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.hub import HubServer
from tests.repository.helpers import bodies, publish, tree
from tests.serving.images import ROOT, Image, build
from tests.serving.served import Served, expected, png, running

FOLDER = ROOT / "examples" / "container"
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1"}


def of_hub(environment: Mapping[str, str]) -> dict[str, str]:
    """What reaches the tests' Hub, of a whole environment; an image has its own caches."""
    kept = {name: value for name, value in environment.items() if name.startswith(("HF_", "NO_PROXY", "no_proxy"))}
    del kept["HF_HOME"]
    return kept


@pytest.fixture
def image(hub: HubServer, repo_id: str, exported: Path, fresh_env: dict[str, str], tmp_path: Path) -> Image:
    """Of a repository's only commit."""
    commit = publish(hub, repo_id, exported)
    arguments = {"REPO": repo_id, "REVISION": commit}
    return build(FOLDER / "Dockerfile", tmp_path / "image", arguments, of_hub(fresh_env))


def unchanging(image: Image) -> dict[str, bytes]:
    """Everything but the cache, which alone may be written to."""
    return {path: content for path, content in tree(image.root).items() if not path.startswith("cache/")}


def start(image: Image, environment: Mapping[str, str]) -> AbstractContextManager[Served]:
    """The container, on a free port of this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    more = {"HOST": "127.0.0.1", "PORT": port, "OMP_NUM_THREADS": "1"}
    return running(image.start(image.command, {**environment, **more}))


def is_healthy(image: Image, served: Served) -> bool:
    """What HEALTHCHECK says."""
    port = served.url.rpartition(":")[2]
    command = [image.here(part).replace(":8000/", f":{port}/") for part in image.health]
    return subprocess.run(command, env=image.environment({}), capture_output=True, timeout=120).returncode == 0


def test_image_has_no_torch_no_user_root_and_one_place_to_write(image):
    installed = [path.name for path in image.python.parent.parent.glob("lib/python*/site-packages/*")]
    assert "pwl_hf" in installed
    assert not {"torch", "transformers"} & set(installed)
    assert image.user == "1000:1000"
    assert (image.env["HOST"], image.env["PORT"], image.env["HF_HOME"]) == ("0.0.0.0", "8000", "/cache")
    assert not tree(image.root / "cache")


def test_container_answers_without_a_hub_and_grows_from_it_into_the_cache_alone(
    hub, image, exported, repository, fresh_env
):
    picture, before = png(), unchanging(image)
    right = expected(repository, picture)
    with start(image, NOWHERE) as served:
        answer = served.client.post("/predict", content=picture).json()
        assert answer["stage"] == 0
        assert [item["label"] for item in answer["predictions"]] == [item["label"] for item in right[0]]
        assert is_healthy(image, served)
    assert not is_healthy(image, served)
    with hub.record() as requests, start(image, of_hub(fresh_env)) as served:
        assert served.wait_until(lambda now: now["done"])["stage"] == 4
        answer = served.client.post("/predict", content=picture).json()
        assert [item["label"] for item in answer["predictions"]] == [item["label"] for item in right[4]]
    assert {"model.safetensors", "onnx/student.onnx", "onnx/index.json"}.isdisjoint(bodies(requests))
    # A file system that is read-only, but for the cache, would have been no other.
    assert unchanging(image) == before
    with hub.record() as requests, start(image, of_hub(fresh_env)) as served:
        served.wait_until(lambda now: now["done"])
    assert not bodies(requests), "a container that is started again has its cache"
