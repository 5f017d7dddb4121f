"""Work in order, several at a time, each when what it needs is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Something to do once.

    Args:
        name: A name of its own.
        work: Does it; what it raises is its failure.
        needs: Names of the tasks that must have succeeded before.
    """

    name: str
    work: Callable[[], None]
    needs: frozenset[str] = frozenset()


def perform(tasks: Sequence[Task], jobs: int, report: Callable[[str], None]) -> dict[str, str]:
    """Do all tasks, `jobs` at a time, the first in order first among those that can be.

    One that fails keeps only those from running that need it.

    Args:
        tasks: The tasks.
        jobs: How many at a time.
        report: Told what begins and what has ended.

    Returns:
        What failed and what was kept from running: the reason by the task's name.
    """
    waiting, done, failed = list(tasks), set[str](), dict[str, str]()
    running: dict[Future[None], Task] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while waiting or running:
            before = len(waiting)
            for task in list(waiting):
                lost = task.needs & failed.keys()
                if lost:
                    failed[task.name] = f"not run: {', '.join(sorted(lost))} failed"
                    waiting.remove(task)
                elif task.needs <= done and len(running) < jobs:
                    report(f"{task.name}: begins")
                    running[pool.submit(task.work)] = task
                    waiting.remove(task)
            if not running:
                if len(waiting) == before and waiting:
                    names = ", ".join(task.name for task in waiting)
                    raise ValueError(f"these tasks need some that are not there: {names}")
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                error = future.exception()
                if error is None:
                    done.add(task.name)
                    left = len(waiting) + len(running)
                    report(f"{task.name}: done; {left} to go")
                elif isinstance(error, Exception):
                    failed[task.name] = str(error)
                    report(f"{task.name}: FAILED: {error}")
                else:
                    raise error
    finally:
        # Children are ended by whoever owns them; their threads then end too.
        pool.shutdown(wait=False, cancel_futures=True)
    return failed
