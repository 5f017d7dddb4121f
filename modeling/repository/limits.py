"""What a thread's downloads are bound by: an end, a pace, a length (pure Python).

Said here, and seen to by `transfers`, which is imported where a Hub is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import PWLError, RepositoryError

# What ends the requests of this thread, what is told how many bytes came, and how long the file it asks for may be.
CANCELLED: ContextVar[threading.Event | None] = ContextVar("pwl_cancelled", default=None)
SPEND: ContextVar[Callable[[int], None] | None] = ContextVar("pwl_spend", default=None)
MOST: ContextVar[int | None] = ContextVar("pwl_most", default=None)


class Interrupted(PWLError):
    """Ends a download that is no longer wanted."""


class TooLongError(RepositoryError):
    """A file that is longer than it may be, refused before it was received."""


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Let this thread's downloads raise `TooLongError` as soon as a file is known to be longer than that.

    Args:
        size: Bytes.
    """
    token = MOST.set(size)
    try:
        yield
    finally:
        MOST.reset(token)


class Pace:
    """Limits the bandwidth of downloads.

    Args:
        rate: Bytes a second; None for no limit.
        cancelled: Ends every wait.
    """

    def __init__(self, rate: float | None, cancelled: threading.Event) -> None:
        self._rate, self._cancelled = rate, cancelled
        self._due, self._lock = 0.0, threading.Lock()

    @contextmanager
    def limit(self, size: int = 0) -> Iterator[None]:
        """Limit what this thread downloads.

        Args:
            size: How much it is. Bytes that the hooks did not see are waited for at the end.
        """
        with self._lock:
            # Time without a download earns nothing.
            self._due = max(self._due, time.monotonic())
        seen = 0

        def spend(count: int) -> None:
            nonlocal seen
            seen += count
            self._wait_for(count)

        token = SPEND.set(spend)
        try:
            yield
        finally:
            SPEND.reset(token)
        self._wait_for(max(0, size - seen))

    def _wait_for(self, count: int) -> None:
        if self._rate is not None:
            with self._lock:
                self._due += count / self._rate
                seconds = self._due - time.monotonic()
            self._cancelled.wait(max(0.0, seconds))
