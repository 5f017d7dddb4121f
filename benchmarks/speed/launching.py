"""Tasks in processes of their own, timed: fresh ones, or forks of one whose imports are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed.child import Task
from benchmarks.speed.figures import Place
from benchmarks.speed.hub import Asked, Hub
from benchmarks.speed.peers import running
from pwl_hf.modeling.families.registry import family_of

PWL_CLASS = "pwl_hf:PWLForImageClassification"


@dataclass(frozen=True)
class Run:
    """A task that was done.

    Args:
        start: When it began, in seconds of `time.monotonic`.
        seconds: From there to its last answer.
        marks: Seconds from its beginning to each of the marks (`benchmarks.speed.child.Marks`) that it made.
        stages: Seconds from its beginning to each stage.
    """

    start: float
    seconds: float
    marks: Mapping[str, float]
    stages: Sequence[float]


def plain_class(place: Place) -> str:
    """The class of a pair's plain networks as `Task` takes it, from where a user would import it."""
    network = family_of(place.pair.teacher).model_class()
    return f"{network.__module__.partition('.')[0]}:{network.__name__}"


def fresh(task: Task, environment: Mapping[str, str]) -> Run:
    """Do a task in a fresh process, timed from before the process is there until it has said that it has answered.

    Args:
        task: The task.
        environment: The process's.

    Raises:
        RuntimeError: If the process fails.
    """
    start = time.monotonic()
    with running("benchmarks.speed.child", [task.as_json()], environment) as peer:
        marks = peer.hear()
        seconds = time.monotonic() - start
    return _run(start, seconds, marks)


@contextmanager
def imported(rehearsed: Sequence[Task], environment: Mapping[str, str]) -> Iterator[Callable[[Task], Run]]:
    """A process whose imports are done, within a `with` block.

    Args:
        rehearsed: What it does beforehand, from local files, so that nothing is left to import.
        environment: The process's.

    Yields:
        A function that does a task in a fork of the process, timed from the fork; it is the first that the fork does.

    Raises:
        RuntimeError: If the process fails.
    """
    arguments = ["--imported", *(task.as_json() for task in rehearsed)]
    with running("benchmarks.speed.child", arguments, environment) as peer:
        peer.hear()

        def run(task: Task) -> Run:
            marks = peer.ask(asdict(task))
            return _run(marks["began"], marks["answered"] - marks["began"], marks)

        yield run


def from_empty_cache(place: Place, hub: Hub, run: Callable[[Task], Run], task: Task) -> tuple[Run, list[Asked]]:
    """Do a task with a Hub cache that is new and thrown away, and tell what the Hub was asked meanwhile.

    Args:
        place: Where the cache is made.
        hub: The Hub that the task loads from.
        run: Does the task, as `imported` gives it.
        task: The task, without a cache.
    """
    with TemporaryDirectory(dir=place.data) as cache:
        hub.take()
        return run(replace(task, cache_dir=cache)), hub.take()


def _run(start: float, seconds: float, marks: Mapping[str, Any]) -> Run:
    named = {name: at - start for name, at in marks.items() if name != "stages" and at}
    return Run(start, seconds, named, [at - start for at in marks["stages"]])
