"""Modules of the benchmarks that run in processes of their own and talk in lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]


class Peer:
    """A process that is talked to.

    Args:
        process: The process, with pipes as its standard input and output.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def hear(self) -> Any:
        """Its next line.

        Raises:
            RuntimeError: If it ended without one.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise RuntimeError(f"{self.process.args!r} ended with code {code}; what it said of it is above")
        return json.loads(line)

    def ask(self, order: Any) -> Any:
        """Say something, and hear the answer.

        Raises:
            RuntimeError: If it ended without one.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.hear()


def start(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Peer:
    """Run a module in a process of its own, which whoever asked for it has to end.

    Args:
        module: Its name.
        arguments: Its arguments.
        environment: Its environment; this process's if it is None.
    """
    return Peer(
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=None if environment is None else dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
        )
    )


@contextmanager
def running(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Peer]:
    """Run a module in a process of its own, within a `with` block; the arguments are those of `start`."""
    peer = start(module, arguments, environment)
    try:
        yield peer
    finally:
        # The end of its input ends it.
        peer.process.communicate()
