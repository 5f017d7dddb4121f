"""Training and measuring the runs that the store lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.recipes.processes import ChildFailed
from benchmarks.recipes.runs import Run
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
    """Train and measure the runs that the store lacks, and add each when it is done.

    Args:
        runs: The runs.
        store: The store.
        workplace: Where they are trained.
        jobs: How many run side by side.
        report: Called with each line of progress.
        again: Also train and measure those that the store has.

    Returns:
        Why trainings and runs failed, by key; a run whose teacher failed is not begun. None of these is in the store.
    """
    stored = {} if again else store.read("runs")
    missing = [run for run in runs if run.key not in stored]
    report(f"{len(runs)} runs, {len(runs) - len(missing)} of them stored")
    teachers = {run.training.teacher.key: run.training.teacher for run in missing if run.training.teacher}
    trained: dict[str, Future[Any]] = {}

    def train(key: str) -> None:
        report(f"{key}: begins")
        workplace.train(teachers[key])

    def measure(run: Run) -> None:
        teacher = run.training.teacher
        # No deadlock: teachers are ahead of all runs in the pool.
        if teacher is not None and trained[teacher.key].exception() is not None:
            raise ChildFailed(f"not run: {teacher.key} failed")
        report(f"{run.key}: begins")
        if again:
            workplace.train(run.training, again=True)
        store.add("runs", run.key, workplace.measure(run))

    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        trained |= {key: pool.submit(train, key) for key in teachers}
        names = {future: key for key, future in trained.items()}
        names |= {pool.submit(measure, run): run.key for run in missing}
        for done, future in enumerate(as_completed(names), 1):
            if (error := future.exception()) is None:
                report(f"{names[future]}: done; {len(names) - done} to go")
            else:
                failed[names[future]] = str(error)
                report(f"{names[future]}: FAILED: {error}")
    finally:
        # The owner of the children ends them, and with them these threads.
        pool.shutdown(wait=False, cancel_futures=True)
    return failed


def check_files(files: Mapping[str, str], folder: Path | None, option: str = "data") -> None:
    """Refuse files that are not those of the definitions.

    Args:
        files: The SHA-256 of each file.
        folder: Their folder.
        option: What gives the folder: `data` or `weights`.

    Raises:
        ValueError: If no folder is given, a file is missing or has other bytes.
    """
    if not files:
        return
    if folder is None:
        raise ValueError(f"the folder of {option} is needed, with {', '.join(files)}: give --{option} DIR")
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"no {name} in {folder}")
        found = sha256_of(path)
        if found != wanted:
            raise ValueError(
                f"{path} is not the file that the definitions name: its SHA-256 is {found}, not {wanted}. "
                f"Results of other {option} are other results: define them by a name of their own"
            )
