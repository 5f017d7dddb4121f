"""Fills the store with the runs of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.recipes.runs import Run, Training
from benchmarks.recipes.schedule import Task, perform
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Store
from pwl_hf.modeling.repository.verification import sha256_of

Report = Callable[[str], None]


def fill(
    runs: Sequence[Run],
    store: Store,
    workplace: Workplace,
    *,
    jobs: int,
    report: Report,
    again: bool = False,
) -> dict[str, str]:
    """Train and measure the runs that the store has not, and add each when it is done.

    Args:
        runs: The runs wanted.
        store: The store.
        workplace: Where they are trained.
        jobs: How many at a time.
        report: Told of progress.
        again: Train and measure also those that the store has.

    Returns:
        Why those that failed did, by key. They are not in the store.
    """
    stored = {} if again else store.read("runs")
    missing = [run for run in runs if run.key not in stored]
    report(f"{len(runs)} runs, {len(runs) - len(missing)} of them stored")
    teachers = {run.training.teacher.key: run.training.teacher for run in missing if run.training.teacher}
    tasks = [Task(key, partial(_train, workplace, teacher)) for key, teacher in teachers.items()]
    for run in missing:
        needs = frozenset([run.training.teacher.key] if run.training.teacher else [])
        tasks.append(Task(run.key, partial(_measure, run, store, workplace, again), needs))
    return perform(tasks, jobs, report)


def _train(workplace: Workplace, training: Training) -> None:
    workplace.train(training)


def _measure(run: Run, store: Store, workplace: Workplace, again: bool) -> None:
    if again:
        workplace.train(run.training, again=True)
    store.add("runs", run.key, workplace.measure(run))


def check_files(files: Mapping[str, str], folder: Path | None) -> None:
    """Refuse data other than that which the definitions name.

    Args:
        files: The SHA-256 of each file.
        folder: The folder they are in.

    Raises:
        ValueError: If no folder is given, a file is missing or has other bytes.
    """
    if not files:
        return
    if folder is None:
        raise ValueError(f"the data's folder is needed, with {', '.join(files)}: give --data DIR")
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"no {name} in {folder}")
        found = sha256_of(path)
        if found != wanted:
            raise ValueError(
                f"{path} is not the file that the definitions name: its SHA-256 is {found}, not {wanted}. "
                "Results of other data are other results: define data of its own"
            )
