"""A Hub in a process of its own, as far away as it is told to be, and what it was asked.

    with serving({"org/pwl": folder}, root) as hub:
        ...  # processes with the environment of hub.environment(home) load "org/pwl"
        asked = hub.take()

huggingface_hub reads its address at its first import, so whoever loads from it is a process of its own too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import Place
from benchmarks.speed.peers import Peer, running
from pwl_hf.modeling.families.registry import family_of

# The line of the figures: bytes a second for all connections together, and seconds before each answer.
BANDWIDTH = 20e6
LATENCY = 0.02

PWL, RUNGS, TEACHER, STUDENT = "org/pwl", "org/pwl-rungs", "org/teacher", "org/student"


@dataclass(frozen=True)
class Asked:
    """A request that the Hub had.

    Args:
        at: When it arrived, in seconds of `time.monotonic`, which all processes of a machine share.
        method: `"GET"`, `"HEAD"`, ...
        path: The path of the URL.
        file: The file's path in its repository, for a request of a file.
        status: The answer's status; 0 while there is none.
        sent: Bytes of the answer's body, so far.
    """

    at: float
    method: str
    path: str
    file: str | None
    status: int
    sent: int


def total_bytes(asked: Sequence[Asked]) -> int:
    """The bytes of all answers' bodies."""
    return sum(request.sent for request in asked)


def environment(home: Path) -> dict[str, str]:
    """The environment of a process that is measured, as it loads from local files.

    Nothing of the caller's own Hub settings is in it. Xet is off: it is the line that limits, and a Hub on the loopback
    interface has plain files only. torch has one thread.

    Args:
        home: The folder of its caches (`HF_HOME`).
    """
    foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "OMP_NUM_THREADS": "1",
    }


class Hub:
    """A Hub that serves.

    Args:
        peer: Its process, of `benchmarks.speed.hub_process`.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.url: str = peer.hear()

    def set_line(self, bandwidth: float | None, latency: float) -> None:
        """How far away it is.

        Args:
            bandwidth: Bytes a second, for all connections together; None for no limit.
            latency: Seconds before each answer.
        """
        self._order(line=[bandwidth, latency])

    def take(self) -> list[Asked]:
        """The requests since the last call; of those that are under way, the bytes so far."""
        return [Asked(**request) for request in self._order()["requests"]]

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that loads from this Hub.

        Args:
            home: The folder of its caches (`HF_HOME`).
        """
        return environment(home) | {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def _order(self, **order: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._peer.ask(order)
        if answer["errors"]:
            raise RuntimeError(f"the Hub's own mistakes: {answer['errors']}")
        return answer


@contextmanager
def serving(
    folders: Mapping[str, Path], root: Path, *, bandwidth: float | None = BANDWIDTH, latency: float = LATENCY
) -> Iterator[Hub]:
    """A Hub that serves folders as repositories, from a process of its own, within a `with` block.

    Args:
        folders: By the repository's name, such as `"org/pwl"`; what is in a folder's `student/` stays out.
        root: The Hub's own folder. What an earlier run has put there is used again if it is the same.
        bandwidth: Bytes a second, for all connections together; None for no limit.
        latency: Seconds before each answer.
    """
    given = json.dumps({name: str(folder.resolve()) for name, folder in folders.items()})
    with running("benchmarks.speed.hub_process", [str(root.resolve()), given]) as peer:
        hub = Hub(peer)
        hub.set_line(bandwidth, latency)
        yield hub


@contextmanager
def serving_pair(place: Place, *, bandwidth: float | None = BANDWIDTH, latency: float = LATENCY) -> Iterator[Hub]:
    """A Hub with a pair's repository (`PWL`), and its plain `TEACHER` and `STUDENT` as transformers saves them.

    Args:
        place: Whose pair it is.
        bandwidth: Bytes a second, for all connections together; None for no limit.
        latency: Seconds before each answer.
    """
    folder = place.repository()
    folders = {PWL: folder, TEACHER: plain_teacher(place), STUDENT: folder / "student"}
    with serving(folders, place.data / f"{place.name}-hub", bandwidth=bandwidth, latency=latency) as hub:
        yield hub


def plain_teacher(place: Place) -> Path:
    """The teacher as transformers saves it by itself, in one file up to 50 GB; made if it is not there."""
    folder = place.data / f"{place.name}-teacher"
    if not (folder / "config.json").is_file():
        network = family_of(place.pair.teacher).model_class()
        network.from_pretrained(place.repository() / "teacher").save_pretrained(folder)
    return folder
