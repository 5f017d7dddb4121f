"""Child processes: one thread each, a log each, ended together."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_SECONDS_TO_END = 10
_TAIL = 15


class ChildFailed(RuntimeError):
    """A child process that did not succeed; the message ends with the last lines of its log."""


class Execute(Protocol):
    """Runs a command to its end, its output into a log; raises ChildFailed if it does not succeed."""

    def __call__(self, command: Sequence[str], log: Path) -> None:
        """Run the command."""


class Children:
    """Runs commands and knows which of them are running; as a context manager, ends them on the way out.

    Args:
        threads: Threads that torch may use in each.
        environment: Further variables.
    """

    def __init__(self, threads: int = 1, environment: Mapping[str, str] | None = None) -> None:
        # More runs side by side than cores with threads of their own would stand in each other's way.
        count = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._environment = {**os.environ, **count, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        self._environment |= environment or {}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._ended = False

    def __call__(self, command: Sequence[str], log: Path) -> None:
        """Run a command to its end.

        Args:
            command: The program and its arguments.
            log: Its output is appended here.

        Raises:
            ChildFailed: If it ends with anything but 0, or everything has been ended.
        """
        with log.open("ab") as file:
            with self._lock:
                if self._ended:
                    raise ChildFailed("not started: the others were ended")
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=self._environment
                )
                self._running.add(child)
            code = child.wait()
        with self._lock:
            self._running.discard(child)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            tail = "\n".join(lines[-_TAIL:])
            raise ChildFailed(f"{' '.join(command[:4])} ... ended with {code}; the end of {log}:\n{tail}")

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            running = list(self._running)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                child.kill()
