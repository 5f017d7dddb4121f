"""Background threads that a failed caller does not wait for, nor the end of the process (no torch)."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextvars import copy_context
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")

# Seconds that the end of the process waits for each thread.
_JOIN_TIMEOUT = 5.0


class Prefetch(Generic[Result]):
    """Work in a thread beside others; as a `with` block, which cancels it at its end, it is work beside that block.

    Args:
        work: What to do; it is given an event that tells it to stop.
    """

    def __init__(self, work: Callable[[threading.Event], Result]) -> None:
        self._work = work
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._result: list[Result] = []
        self._error: BaseException | None = None
        # ThreadPoolExecutor would join at exit; a failed call must not hang on the network. The context carries the
        # caller's bandwidth limit.
        self._thread = threading.Thread(target=copy_context().run, args=[self._run], name="pwl-fetch", daemon=True)

    def start(self) -> Self:
        """Begin."""
        self._finalizer = end_before_exit(self, self._cancelled.set, [self._thread])
        self._thread.start()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._ended.is_set()

    @property
    def exception(self) -> BaseException | None:
        """What ended it; None while it runs, and if it went well."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended.

        Args:
            timeout: Seconds; without end by default.

        Returns:
            Whether it has ended.
        """
        return self._ended.wait(timeout)

    def cancel(self) -> None:
        """Ask it to end; a download does with the next bytes that come."""
        self._cancelled.set()

    def result(self) -> Result:
        """Wait for the result.

        Raises:
            BaseException: What the work raised.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._cancelled))
        except BaseException as error:
            self._error = error
        self._ended.set()
        # The thread has nothing left to do: no finalizer need join it.
        self._finalizer.detach()


def download_concurrently(items: Sequence[Item], work: Callable[[Item, threading.Event], Result]) -> dict[Item, Result]:
    """Work on items in two threads: this one from the front, another from the back, until they meet.

    Of items sorted by size, small ones are fetched while large ones download. After a failure no item is begun;
    this thread finishes its own, and does not wait for the other's.

    Args:
        items: The items.
        work: What to do with each, in either thread; it is given an event that tells it to stop.

    Returns:
        The result of each.

    Raises:
        BaseException: What the work raised.
    """
    left, done = deque(items), dict[Item, Result]()

    def do(item: Item, ended: threading.Event) -> None:
        try:
            done[item] = work(item, ended)
        except BaseException:
            left.clear()
            raise

    def take(one: Callable[[], Item], ended: threading.Event) -> None:
        while True:
            try:
                item = one()
            except IndexError:
                return
            do(item, ended)

    here = threading.Event()
    if len(left) < 2:
        take(left.popleft, here)
        return done
    # Always done here: where every item fails, the error is the first one's each time.
    first = left.popleft()
    with Prefetch(lambda ended: take(left.pop, ended)) as back:
        do(first, here)
        take(left.popleft, here)
        back.result()
    return done


def end_before_exit(
    owner: object, end: Callable[[], None], threads: list[threading.Thread]
) -> weakref.finalize[..., object]:
    """End threads when their owner is gone, and before the interpreter is: one inside C code would crash it.

    Args:
        owner: Whose threads they are.
        end: Asks them to end; must not hold the owner.
        threads: The threads. A forked child has none of them.

    Returns:
        The finalizer, to be detached once the threads have ended.
    """
    return weakref.finalize(owner, _leave, os.getpid(), end, threads)


def _leave(process: int, end: Callable[[], None], threads: list[threading.Thread]) -> None:
    if process != os.getpid():
        return
    end()
    for thread in threads:
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(_JOIN_TIMEOUT)
