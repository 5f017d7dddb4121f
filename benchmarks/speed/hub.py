"""A Hub in a process of its own, as far away as it is told to be, and what it was asked.

    with serving({"org/pwl": folder}, root) as hub:
        ...  # processes with the environment of hub.environment(home) load "org/pwl"
        asked = hub.take()

huggingface_hub reads its address at its first import, so whoever loads from it is a process of its own too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.speed.figures import Place
from pwl_hf.modeling.families import family_of

CHECKOUT = Path(__file__).resolve().parents[2]

# The line of the figures: bytes a second for all connections together, and seconds before each answer.
BANDWIDTH = 20e6
LATENCY = 0.02

PWL, TEACHER, STUDENT = "org/pwl", "org/teacher", "org/student"


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


class Hub:
    """A Hub that serves, over pipes to its process.

    Args:
        process: The process.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = self._read()

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

        Nothing of the caller's own Hub settings is in it. Xet is off: the limit is the line's, and this Hub has plain
        files only. torch has one thread.

        Args:
            home: The folder of its caches (`HF_HOME`).
        """
        foreign = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        paths = [str(CHECKOUT), *filter(None, [kept.get("PYTHONPATH")])]
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def _order(self, **order: Any) -> dict[str, Any]:
        _pipe(self._process.stdin).write(json.dumps(order) + "\n")
        _pipe(self._process.stdin).flush()
        answer: dict[str, Any] = json.loads(self._read())
        if answer["errors"]:
            raise RuntimeError(f"the Hub's own mistakes: {answer['errors']}")
        return answer

    def _read(self) -> str:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError(f"the Hub's process ended with code {self._process.wait()}")
        return line.strip()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


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
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.speed.hub_process", str(root.resolve()), given],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    try:
        hub = Hub(process)
        hub.set_line(bandwidth, latency)
        yield hub
    finally:
        # The end of its input ends it.
        process.communicate()


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
