"""The lock of a model's state: one change at a time, in any thread, in any process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

# Held for the few assignments that a swap is. A fork waits for it, so that no child begins with half a swap.
SWAPPING = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=SWAPPING.acquire, after_in_parent=SWAPPING.release, after_in_child=SWAPPING.release)


class StateLock:
    """An RLock that comes back unlocked in copies, pickles and forks.

    A thread that held it does not exist in a forked child, and would never let go of it there.
    """

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            with SWAPPING:
                # Asked again: two threads of the child must not each make a lock.
                if self._process != os.getpid():
                    self._lock = threading.RLock()
                    self._process = os.getpid()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[StateLock], tuple[()]]:
        return StateLock, ()


def exclusive(method: Method) -> Method:
    """Let a method of a model hold the model's lock from start to end."""

    @wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.parts.lock:
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]
