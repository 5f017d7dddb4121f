"""The files of what makes a model's inputs: an image processor, a feature extractor, or a tokenizer (no torch)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..errors import MissingFileError
from ..task_names import FIRST_TASK, TASKS, Task

Found = TypeVar("Found")


def processing_task(config: bytes | str) -> Task:
    """The task of a model's `config.json`; of one that the library does not have, the first stands for it."""
    try:
        task = json.loads(config).get("task")
    except (AttributeError, RecursionError, ValueError):
        task = None  # What is wrong with it is said by whoever reads all of it.
    return TASKS[task if isinstance(task, str) and task in TASKS else FIRST_TASK]


def processing_names(config: bytes | str) -> tuple[str, ...]:
    """The names that the files may have, of a model's `config.json`; without the first of them there are none."""
    return processing_task(config).files


def fetch_those_there(names: Sequence[str], fetch: Callable[[str], Found]) -> dict[str, Found]:
    """Fetch the files that there are.

    Args:
        names: The names that they may have.
        fetch: Fetches one, or raises a MissingFileError.

    Returns:
        What was fetched, by name.
    """
    found: dict[str, Found] = {}
    for name in names:
        try:
            found[name] = fetch(name)
        except MissingFileError:
            if name == names[0]:
                break
    return found
