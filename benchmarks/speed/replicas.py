"""Replicas of Ray Serve, and what they answer when.

    with cluster(environment), deployed(application(TORCH, "org/pwl")) as asking:
        print(ask(asking, image).seconds)

Replicas import this module, so it imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

# Nothing is sent anywhere, and whoever is on this machine may ask.
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_SERVE_LOG_TO_STDERR": "0"}
_PORT = 8765

TEACHER, TORCH, RUNTIME = "transformers' teacher", "PWL on torch", "PWL on the runtime"
# Ray's own part: a server without a model.
NOTHING = "no model at all"


@dataclass(frozen=True)
class Answer:
    """An answer.

    Args:
        began: When it was asked for, in seconds of `time.monotonic`.
        seconds: How long it took.
        replica: Whose it is.
        stage: Of which stage it is.
    """

    began: float
    seconds: float
    replica: str
    stage: int

    @property
    def ended(self) -> float:
        """When it was there."""
        return self.began + self.seconds


@contextmanager
def cluster(environment: Mapping[str, str]) -> Iterator[None]:
    """A cluster of Ray on this machine, with Serve, within a `with` block.

    Args:
        environment: What this process's environment, and so that of all replicas, is from now on.
    """
    os.environ.clear()
    os.environ |= {**environment, **_RAY}
    import ray
    from ray import serve

    # Short: the addresses of its sockets lie in it.
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level="ERROR")
        serve.start(http_options={"host": "127.0.0.1", "port": _PORT})
        try:
            yield
        finally:
            serve.shutdown()
            ray.shutdown()


def application(way: str, repo: str) -> Any:
    """An application that scales from no replica to two.

    Args:
        way: `TEACHER`, `TORCH`, `RUNTIME` or `NOTHING`.
        repo: A folder or a Hub id; of the plain teacher for `TEACHER`.
    """
    from ray import serve

    from examples import ray_serve

    settings = ray_serve.Settings(repo=repo, runtime=way == RUNTIME, max_replicas=2)
    if way in (TORCH, RUNTIME):
        return ray_serve.app(settings)
    server = _teacher_server if way == TEACHER else _empty_server
    replica = serve.deployment(serve.ingress(server)(ray_serve.Replica))
    return replica.options(**ray_serve.scaling(settings)).bind(repo, False, None)


def _teacher_server() -> Any:
    """The example's server, around a network as transformers loads it."""
    from examples import ray_serve
    from examples import serve as example

    class Teacher(example.TorchClassifier):
        def __init__(self, repo: str) -> None:
            from transformers import AutoImageProcessor, AutoModelForImageClassification

            self.processor = AutoImageProcessor.from_pretrained(repo)
            self.model = AutoModelForImageClassification.from_pretrained(repo)
            self.model.stage = 0

        def prepare(self, image: Any) -> Any:
            return self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]

        def growth(self) -> dict[str, Any]:
            return {"done": True}

        def stop(self) -> None:
            pass

    example.load = lambda repo, **_: Teacher(repo)
    return ray_serve.server()


def _empty_server() -> Any:
    """The example's server, around nothing that takes time."""
    from examples import ray_serve
    from examples import serve as example

    class Nothing:
        def predict(self, *_: Any) -> dict[str, Any]:
            return {"stage": 0, "predictions": []}

        def stop(self) -> None:
            pass

    example.load = lambda *_, **__: Nothing()
    return ray_serve.server()


@contextmanager
def deployed(made: Any) -> Iterator[httpx2.Client]:
    """A client of an application without a replica, within a `with` block.

    Args:
        made: Of `application`.
    """
    from ray import serve

    serve.run(made, name="measured", route_prefix="/")
    try:
        with client() as asking:
            yield asking
    finally:
        serve.delete("measured")


def second_started(seconds: float = 60) -> float:
    """Wait until Ray starts a second replica; returns when, in seconds of `time.monotonic`.

    Raises:
        TimeoutError: If it does not within so many seconds.
    """
    from ray import serve

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        (found,) = serve.status().applications["measured"].deployments.values()
        if sum(found.replica_states.values()) > 1:
            return time.monotonic()
        time.sleep(0.05)
    raise TimeoutError(f"Ray started no second replica within {seconds} s")


def client() -> httpx2.Client:
    """With connections of its own."""
    return httpx2.Client(base_url=f"http://127.0.0.1:{_PORT}", timeout=120, trust_env=False)


def ask(asking: httpx2.Client, image: bytes) -> Answer:
    """Ask once.

    Raises:
        RuntimeError: For an answer that is none.
    """
    began = time.monotonic()
    found = asking.post("/predict", content=image)
    seconds = time.monotonic() - began
    if found.status_code != 200:
        raise RuntimeError(f"answer {found.status_code}: {found.text:.500}")
    return Answer(began, seconds, found.headers["X-Replica"], found.json()["stage"])


class Load:
    """Clients that ask at once, each again as soon as it has its answer, within a `with` block.

    Args:
        clients: How many.
        image: What they ask.
    """

    def __init__(self, clients: int, image: bytes) -> None:
        self.answers: list[Answer] = []
        self.failures: list[Exception] = []
        self._image, self._ended = image, threading.Event()
        self._threads = [threading.Thread(target=self._go_on) for _ in range(clients)]

    def _go_on(self) -> None:
        try:
            with client() as asking:
                while not self._ended.is_set():
                    self.answers.append(ask(asking, self._image))
        except Exception as error:
            self.failures.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


def empty(folder: Path) -> None:
    """Remove all that is in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
