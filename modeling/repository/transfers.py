"""Ending downloads that are no longer wanted, and limiting their bandwidth (no torch).

Within one call huggingface_hub tries again by itself, for more than a minute where a connection stalls, and holds
the file's lock all the while. It can neither end nor slow that: hooks of its HTTP client do. Xet has a client of its
own, so such a download ends only with its file, whose bytes are waited for afterwards.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from huggingface_hub.utils import get_session, httpx, tqdm  # type: ignore[attr-defined]

from ..errors import PWLError

# What ends the requests of this thread, and what is told how many bytes came.
_CANCELLED: ContextVar[threading.Event | None] = ContextVar("pwl_cancelled", default=None)
_SPEND: ContextVar[Callable[[int], None] | None] = ContextVar("pwl_spend", default=None)


class Interrupted(PWLError):
    """Ends a download that is no longer wanted."""


@contextmanager
def interruptible(cancelled: threading.Event | None) -> Iterator[None]:
    """Let this thread's requests to the Hub raise `Interrupted` once an event is set.

    A wait for the network itself goes on until something comes, or until `HF_HUB_DOWNLOAD_TIMEOUT`.

    Args:
        cancelled: The event; None for no end.
    """
    # The client is the whole process's: requests of other code pass the hooks untouched. After an error of TLS it is
    # a new one, without hooks until the next call.
    client = get_session()
    hooks = client.event_hooks
    if _refuse not in hooks["request"]:
        client.event_hooks = {"request": [*hooks["request"], _refuse], "response": [*hooks["response"], _control]}
    token = _CANCELLED.set(cancelled)
    try:
        yield
    finally:
        _CANCELLED.reset(token)


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

        token = _SPEND.set(spend)
        try:
            yield
        finally:
            _SPEND.reset(token)
        self._wait_for(max(0, size - seen))

    def _wait_for(self, count: int) -> None:
        if self._rate is not None:
            with self._lock:
                self._due += count / self._rate
                seconds = self._due - time.monotonic()
            self._cancelled.wait(max(0.0, seconds))


class _Bar(tqdm):  # type: ignore[misc]
    """The Hub's progress bar with a lock of its own, which a forked child gets unlocked."""

    @classmethod
    def renew(cls) -> None:
        cls._lock, cls._instances = threading.RLock(), WeakSet[Any]()


_Bar.renew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Bar.renew)


def progress_bar() -> type[Any] | None:
    """The class of progress bars: within `Pace.limit` our own, else None for the Hub's."""
    # A fork may come at any moment of a stream, whose threads hold the lock of its bars.
    return _Bar if _SPEND.get() is not None else None


def _refuse(request: object = None) -> None:
    cancelled = _CANCELLED.get()
    if cancelled is not None and cancelled.is_set():
        raise Interrupted("this download is no longer wanted")


def _control(response: Any) -> None:
    if _CANCELLED.get() is not None or _SPEND.get() is not None:
        response.stream = _Controlled(response.stream)


class _Controlled(httpx.SyncByteStream):  # type: ignore[misc]
    """The body of an answer, received at the pace and as long as somebody waits for it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        spend = _SPEND.get()
        for piece in self._stream:
            if spend is not None:
                spend(len(piece))
            _refuse()
            yield piece

    def close(self) -> None:
        self._stream.close()
