"""The lock of a model's state: one change at a time, in any thread, in any process."""

from __future__ import annotations

import os
import threading
from types import TracebackType


class StateLock:
    """A reentrant lock that a copied, pickled or forked owner gets anew, free.

    A thread that held it does not exist in a forked child, and would never let go of it there.
    """

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[StateLock], tuple[()]]:
        return StateLock, ()
