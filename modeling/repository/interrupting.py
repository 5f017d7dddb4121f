"""Ending downloads that are no longer wanted (no torch).

Within one call huggingface_hub tries again by itself, for more than a minute where a connection stalls, and holds
the file's lock all the while. It has no way to end that; a request of a thread that is `interruptible` ends when it
is sent or receives anything. Transfers through Xet are not httpx's, and end with the file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from huggingface_hub.utils import get_session, httpx  # type: ignore[attr-defined]

from ..errors import PWLError

# What ends the requests of a thread, if anything.
_ENDING: ContextVar[threading.Event | None] = ContextVar("pwl_ending", default=None)


class Interrupted(PWLError):
    """Ends a download that is no longer wanted."""


@contextmanager
def interruptible(cancelled: threading.Event | None) -> Iterator[None]:
    """Let the requests that this thread makes of the Hub raise `Interrupted` once an event is set.

    A wait for the network itself goes on until something comes, or until `HF_HUB_DOWNLOAD_TIMEOUT`.
    """
    # Shared by all that use huggingface_hub, whose requests the hooks leave alone; after an error of TLS it is
    # another client, without them until the next call.
    client = get_session()
    hooks = client.event_hooks
    if _refuse not in hooks["request"]:
        client.event_hooks = {"request": [*hooks["request"], _refuse], "response": [*hooks["response"], _guard]}
    token = _ENDING.set(cancelled)
    try:
        yield
    finally:
        _ENDING.reset(token)


def _refuse(request: object = None) -> None:
    cancelled = _ENDING.get()
    if cancelled is not None and cancelled.is_set():
        raise Interrupted("this download is no longer wanted")


def _guard(response: Any) -> None:
    if _ENDING.get() is not None:
        response.stream = _Guarded(response.stream)


class _Guarded(httpx.SyncByteStream):  # type: ignore[misc]
    """The body of an answer, as long as somebody waits for it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            _refuse()
            yield piece

    def close(self) -> None:
        self._stream.close()
