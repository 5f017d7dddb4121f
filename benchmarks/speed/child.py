"""What a process runs whose answers are timed from outside: `python -m benchmarks.speed.child`.

It is given a task as JSON and prints its marks as JSON. It imports nothing before it begins that the task does not.

- `child TASK`: does the task and ends; its imports are in its time.
- `child --imported TASK...`: rehearses the tasks, which imports all they need; then it reads tasks from standard input
  and does each in a fork of its own, so that every one is the first that its process does.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, NoReturn


@dataclass(frozen=True)
class Task:
    """Load a model and answer one image.

    Args:
        network: Its class, `module:name`.
        source: A folder or a Hub id.
        size: Height and width of the image.
        way: `"first"`: answer once. `"stages"`: load all stages, one by one, and answer at the end. `"grow"`: the same,
            and answer at stage 0 too. `"stream"`: answer at stage 0, stream all stages, and answer at the end.
            `"ahead"`: answer once, and begin with `pwl_hf.prefetch`, before anything is imported.
        cache_dir: The Hub cache; the environment's if it is None.
        arrays: The library of the image's values, which are all 0: `"torch"`, or `"numpy"` for what runs without it.
    """

    network: str
    source: str
    size: int
    way: str = "first"
    cache_dir: str | None = None
    arrays: str = "torch"

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass
class Marks:
    """When what was done, in seconds of `time.monotonic`, which all processes of a machine share.

    Args:
        began: The first line of code, or the fork.
        imported: What the task needs was imported.
        loaded: A model was there.
        first: The first answer of a model that grows or streams was there.
        answered: The last answer was there, and with it the task done.
        stages: Of a model that grows, when each stage was there, from stage 0 on.
        resident: No moment: the most bytes that were ever resident (VmHWM), the libraries' with them.
    """

    began: float
    imported: float = 0.0
    loaded: float = 0.0
    first: float = 0.0
    answered: float = 0.0
    stages: list[float] = field(default_factory=list)
    resident: int = 0


def perform(task: Task, marks: Marks) -> None:
    """Do a task.

    Args:
        task: The task.
        marks: Are filled in.
    """
    if task.way == "ahead":
        import_module("pwl_hf").prefetch(task.source, cache_dir=task.cache_dir)
    module, name = task.network.split(":")
    network = getattr(import_module(module), name)
    mode = _mode(task)
    marks.imported = time.monotonic()
    with mode:
        model = network.from_pretrained(task.source, cache_dir=task.cache_dir)
        marks.loaded = time.monotonic()
        marks.stages.append(marks.loaded)
        # Not before: a caller without an image yet imports no numpy either.
        arrays = import_module(task.arrays)
        images = arrays.zeros((1, 3, task.size, task.size), dtype=arrays.float32)
        if task.way in ("grow", "stream"):
            model(images)
            marks.first = time.monotonic()
        if task.way in ("grow", "stages"):
            for _ in range(model.num_stages):
                model.load_next_stage()
                marks.stages.append(time.monotonic())
        elif task.way == "stream":
            with model.stream_stages(on_stage=lambda *_: marks.stages.append(time.monotonic())):
                pass
        logits = model(images).logits
        marks.answered = time.monotonic()
    assert bool(arrays.isfinite(logits).all()), f"{task} gave logits that are no numbers"


def _mode(task: Task) -> AbstractContextManager[Any]:
    return import_module("torch").inference_mode() if task.arrays == "torch" else nullcontext()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _do(task: Task, began: float) -> NoReturn:
    """Do a task, say so, and end at once: what a process does to clear up (a second) belongs to no answer."""
    try:
        marks = Marks(began)
        perform(task, marks)
        marks.resident = import_module("benchmarks.speed.resident").highest_resident()
        _say(asdict(marks))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _fork_for_each(rehearsed: list[Task]) -> None:
    for task in rehearsed:
        perform(task, Marks(time.monotonic()))
    _say({})
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _do(Task(**json.loads(line)), time.monotonic())
        _, status = os.waitpid(process, 0)
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _BEGAN = time.monotonic()
    if sys.argv[1] == "--imported":
        _fork_for_each([Task(**json.loads(text)) for text in sys.argv[2:]])
    else:
        _do(Task(**json.loads(sys.argv[1])), _BEGAN)
