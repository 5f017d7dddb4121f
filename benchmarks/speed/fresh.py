"""A function in a process of its own, which says how far it is.

    with Fresh("benchmarks.speed.measures.memory:grow", {"folder": "..."}) as process:
        process.wait()  # until it is started and all is imported
        result = process.run(lambda mark, at: print(mark))

The function takes a `mark` and its arguments. What it imports at the top of its module is imported before it runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from benchmarks.speed.alone import alone
from benchmarks.speed.peers import start

# Given to the function: says that it has come to a point, and returns when whoever started it has taken note.
Mark = Callable[[str], None]
# Told of each mark, and of its moment in seconds of `time.monotonic`.
OnMark = Callable[[str, float], None]


class Fresh:
    """A process that is started at once, and runs its function when it is told to.

    As a context manager it ends the process at the end of the block.

    Args:
        where: `module:function`.
        arguments: Its keyword arguments, as JSON can hold them.
        environment: The process's environment; that of this one by default.
    """

    def __init__(self, where: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        self._peer = start("benchmarks.speed.fresh", [where, json.dumps(dict(arguments))], environment)
        self._is_ready = False

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._peer.process.pid

    def wait(self) -> None:
        """Wait until its imports are done.

        Raises:
            RuntimeError: If it ends before; its own message is on standard error.
        """
        if not self._is_ready:
            self._peer.hear()
            self._is_ready = True

    def run(self, on_mark: OnMark = lambda mark, at: None) -> Any:
        """Run the function; once only.

        Args:
            on_mark: Told of each mark, while the function waits.

        Returns:
            What it returns, through JSON.

        Raises:
            RuntimeError: If it fails; its own message is on standard error.
        """
        self.wait()
        while True:
            said = self._peer.ask("go on")
            if "result" in said:
                return said["result"]
            on_mark(said["mark"], said["at"])

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *_: object) -> None:
        # Not its own end: that of what it was made for has come.
        self._peer.process.kill()
        self._peer.process.communicate()


def main(where: str, arguments: Mapping[str, Any]) -> None:
    """Import a function, and run it when a line comes.

    Args:
        where: `module:function`.
        arguments: Its keyword arguments.
    """
    # What libraries print must not be taken for what is said here.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def say(**said: Any) -> None:
            answers.write(json.dumps(said) + "\n")
            answers.flush()

        def told_to_go_on() -> None:
            if not sys.stdin.readline():
                raise SystemExit("whoever started this process has gone")

        def mark(name: str) -> None:
            say(mark=name, at=time.monotonic())
            told_to_go_on()

        module, name = where.split(":")
        function = getattr(import_module(module), name)
        alone()
        say()
        told_to_go_on()
        say(result=function(mark, **arguments))
        # With all that it has: whoever started it may want to look, and ends it.
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
