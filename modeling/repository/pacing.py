"""Holding downloads to a number of bytes a second (no torch)."""

from __future__ import annotations

import threading
import time
from typing import Any
from weakref import WeakSet

from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]


class Pace:
    """Holds downloads to a number of bytes a second.

    Args:
        rate: The number; None for no limit.
        cancelled: Ends every wait.
    """

    def __init__(self, rate: float | None, cancelled: threading.Event) -> None:
        self._rate, self._cancelled = rate, cancelled
        self._due, self._lock = 0.0, threading.Lock()

    def begin(self) -> Transfer:
        """A file's transfer begins: time that passed without one earns nothing."""
        with self._lock:
            self._due = max(self._due, time.monotonic())
        return Transfer(self)

    def spend(self, size: float) -> None:
        """Wait until `size` more bytes were due."""
        if self._rate is not None and size > 0:
            with self._lock:
                self._due += size / self._rate
                wait = self._due - time.monotonic()
            self._cancelled.wait(max(0.0, wait))


class Transfer:
    """The bytes of one file that were waited for."""

    def __init__(self, pace: Pace) -> None:
        self._pace, self._spent = pace, 0.0

    def spend(self, size: float) -> None:
        """So many more came."""
        self._spent += size
        self._pace.spend(size)

    def settle(self, size: int) -> None:
        """The file of `size` bytes has arrived: wait for what was not spent piece by piece."""
        self.spend(max(0.0, size - self._spent))

    def watch(self) -> type[Any]:
        """A progress bar of the Hub's own kind that also spends."""
        transfer = self

        class Watch(tqdm):  # type: ignore[misc]
            # Not those of all progress bars: in a forked child, a lock that a thread of the parent held is never freed.
            _lock, _instances = threading.RLock(), WeakSet[Any]()

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # Xet reports from a thread of its own, which must neither wait nor fail.
                self._is_receiving = kwargs.get("name") == "huggingface_hub.http_get"
                super().__init__(*args, **kwargs)

            def update(self, n: float | None = 1) -> bool | None:
                if self._is_receiving:
                    transfer.spend(n or 0)
                shown: bool | None = super().update(n)
                return shown

        return Watch
