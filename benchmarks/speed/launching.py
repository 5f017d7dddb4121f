"""Tasks in processes of their own, timed: fresh ones, or forks of one whose imports are done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.speed.child import Task
from benchmarks.speed.figures import Place
from benchmarks.speed.hub import Asked, Hub
from benchmarks.speed.peers import running
from pwl_hf.modeling.families.registry import family_of

PWL_CLASS = "pwl_hf:PWLForImageClassification"
RUNTIME_CLASS = "benchmarks.speed.without_torch:Runtime"
SESSION_CLASS = "benchmarks.speed.without_torch:TeacherSession"


@dataclass(frozen=True)
class Run:
    """A task that was done.

    Args:
        start: When it began, in seconds of `time.monotonic`.
        seconds: From its start to its last answer.
        marks: Seconds from its start to each of its marks (`benchmarks.speed.child.Marks`).
        stages: Seconds from its start to each stage.
        resident: The most bytes that its process ever had resident.
    """

    start: float
    seconds: float
    marks: Mapping[str, float]
    stages: Sequence[float]
    resident: int


def plain_class(place: Place) -> str:
    """The class of a pair's plain networks as `Task` takes it, from where a user would import it."""
    network = family_of(place.pair.teacher).model_class()
    return f"{network.__module__.partition('.')[0]}:{network.__name__}"


def fresh(task: Task, environment: Mapping[str, str]) -> Run:
    """Do a task in a fresh process, timed from before the process starts until its answer is read.

    Args:
        task: The task.
        environment: The environment of the process.

    Raises:
        RuntimeError: If the process fails.
    """
    start = time.monotonic()
    with running("benchmarks.speed.child", [task.as_json()], environment) as peer:
        marks = peer.hear()
        seconds = time.monotonic() - start
    return _run(start, seconds, marks)


def fresh_from_empty_cache(data: Path, hub: Hub, task: Task) -> Run:
    """Do a task in a fresh process with a Hub cache of its own.

    Args:
        data: The folder in which the cache is made.
        hub: The Hub that the task loads from.
        task: The task, without a cache.
    """
    with TemporaryDirectory(dir=data) as home:
        return fresh(task, hub.environment(Path(home)))


def in_turn(things: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """What each of several things was, by name, in rounds in which all take turns."""
    runs: dict[str, list[Run]] = {name: [] for name in things}
    for _ in range(rounds):
        for name, thing in things.items():
            runs[name].append(thing())
    return runs


@contextmanager
def imported(rehearsed: Sequence[Task], environment: Mapping[str, str]) -> Iterator[Callable[[Task], Run]]:
    """A process whose imports are done, within a `with` block.

    Args:
        rehearsed: Tasks over local files that it does first, so that nothing is left to import.
        environment: The environment of the process.

    Yields:
        A function that does a task in a fork of the process, timed from the fork.

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


def from_empty_cache(
    place: Place, hub: Hub, tasks: Mapping[str, Task], rehearsed: Sequence[Task], rounds: int
) -> tuple[dict[str, list[Run]], dict[str, list[list[Asked]]]]:
    """Do tasks in turn, each with a Hub cache of its own, in a fork of a process whose imports are done.

    Args:
        place: Where caches are made.
        hub: The Hub that the tasks load from.
        tasks: By name, without a cache.
        rehearsed: As in `imported`.
        rounds: How often each is done.

    Returns:
        By name, round by round: what was done, and what the Hub was asked meanwhile.
    """
    runs: dict[str, list[Run]] = {name: [] for name in tasks}
    asked: dict[str, list[list[Asked]]] = {name: [] for name in tasks}
    with TemporaryDirectory(dir=place.data) as home, imported(rehearsed, hub.environment(Path(home))) as run:
        for _ in range(rounds):
            for name, task in tasks.items():
                with TemporaryDirectory(dir=place.data) as cache:
                    hub.take()
                    runs[name].append(run(replace(task, cache_dir=cache)))
                    asked[name].append(hub.take())
    return runs, asked


def _run(start: float, seconds: float, marks: Mapping[str, Any]) -> Run:
    named = {name: at - start for name, at in marks.items() if name not in ("stages", "resident") and at}
    return Run(start, seconds, named, [at - start for at in marks["stages"]], marks["resident"])
