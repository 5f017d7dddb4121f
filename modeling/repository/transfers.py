"""Ending downloads that are no longer wanted, limiting bandwidth and length, and doubting answers (no torch).

Within one call huggingface_hub tries again by itself, for more than a minute where a connection stalls, and holds
the file's lock all the while. It can neither end nor slow that: hooks of its HTTP client do. Xet has a client of its
own, so such a download ends only with its file, whose bytes are waited for afterwards.

It also makes paths of what an answer says (ETag, commit), and sleeps as long as one asks, where neither can be ended
nor bounded from outside. Hooks refuse such answers before it reads them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

from huggingface_hub.utils import (  # type: ignore[attr-defined]
    get_session,
    hf_raise_for_status,
    httpx,
    parse_ratelimit_headers,
    tqdm,
)

from ..errors import PWLError
from .limits import CANCELLED, MOST, SPEND, Interrupted, TooLongError

# Whether this thread's requests are ours.
_OURS: ContextVar[bool] = ContextVar("pwl_ours", default=False)
# One for each call of ours under way, in any thread.
_RUNNING: set[object] = set()

# The git hash of a small file or the sha256 of a large one, weak or quoted as HTTP has it.
_ETAG = re.compile(r"(W/)?(\"?)([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})\2")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class RefusedAnswer(PWLError):
    """An answer whose headers name what is no hash: the client would make paths of them."""


@contextmanager
def ours() -> Iterator[None]:
    """Doubt the answers to this thread's requests to the Hub: hashes must be hashes, and waits are the caller's.

    Raises:
        RefusedAnswer: Where an ETag or a commit is no hash.
        HfHubHTTPError: Where the Hub asks to wait, which the client would do without an end.
    """
    _hook_client()
    token, running = _OURS.set(True), object()
    _RUNNING.add(running)
    try:
        yield
    finally:
        _RUNNING.discard(running)
        _OURS.reset(token)


@contextmanager
def interruptible(cancelled: threading.Event | None) -> Iterator[None]:
    """Let this thread's requests to the Hub raise `Interrupted` once an event is set.

    A wait for the network itself goes on until something comes, or until `HF_HUB_DOWNLOAD_TIMEOUT`.

    Args:
        cancelled: The event; None for no end.
    """
    _hook_client()
    token = CANCELLED.set(cancelled)
    try:
        yield
    finally:
        CANCELLED.reset(token)


def _hook_client() -> None:
    # The client is the whole process's: requests of other code pass the hooks untouched. After an error of TLS it is
    # a new one, without hooks until the next call.
    client = get_session()
    hooks = client.event_hooks
    if _refuse not in hooks["request"]:
        client.event_hooks = {"request": [*hooks["request"], _refuse], "response": [*hooks["response"], _control]}


class _Bar(tqdm):  # type: ignore[misc]
    """The Hub's progress bar with a lock of its own, which a forked child gets unlocked; it counts what came."""

    def update(self, n: float | None = 1) -> bool | None:
        # Bytes as they are written: of Xet, and of a compressed body, the hooks see others.
        self._came = getattr(self, "_came", 0) + (n or 0)
        _check_length(self._came)
        return super().update(n)  # type: ignore[no-any-return]

    @classmethod
    def renew(cls) -> None:
        cls._lock, cls._instances = threading.RLock(), WeakSet[Any]()


_Bar.renew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Bar.renew)


def progress_bar() -> type[Any] | None:
    """The class of progress bars: within `Pace.limit` and `at_most` our own, else None for the Hub's."""
    # A fork may come at any moment of a stream, whose threads hold the lock of its bars.
    return _Bar if SPEND.get() is not None or MOST.get() is not None else None


def _refuse(request: object = None) -> None:
    cancelled = CANCELLED.get()
    if cancelled is not None and cancelled.is_set():
        raise Interrupted("this download is no longer wanted")


def _control(response: Any) -> None:
    if _OURS.get():
        _check_names(response)
        _check_wait(response)
        _check_length(_declared_length(response))
    elif _RUNNING and response.request.method == "PUT":
        # The client uploads in threads of its own, which know nothing of ours.
        _check_wait(response)
    if CANCELLED.get() is not None or SPEND.get() is not None:
        response.stream = _Controlled(response.stream)


def _check_names(response: Any) -> None:
    """Refuse an ETag or a commit that is no hash; an ETag counts where the client takes it for the file's."""
    headers = response.headers
    linked = headers.get("X-Linked-Etag")
    etag = linked or (headers.get("ETag") if response.request.method == "HEAD" else None)
    # An answer that only leads elsewhere on the Hub may have an ETag of its own.
    moves = response.is_redirect and not linked and urlsplit(headers.get("Location", "")).netloc == ""
    if etag is not None and response.status_code < 400 and not moves and not _ETAG.fullmatch(etag):
        raise RefusedAnswer(f"the answer has the ETag {etag!r:.100}, which is no hash of 40 or 64 hex digits")
    commit = headers.get("X-Repo-Commit")
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise RefusedAnswer(f"the answer has the commit {commit!r:.100}, which is no hash of 40 hex digits")


def _check_wait(response: Any) -> None:
    """Raise at once where the client would sleep for as long as the Hub asks."""
    asked = response.headers.get("Retry-After") not in (None, "", "0")
    if response.status_code >= 400 and (asked or parse_ratelimit_headers(response.headers) is not None):
        hf_raise_for_status(response)


def _declared_length(response: Any) -> int:
    """The length of the file that an answer speaks of, as far as it says."""
    linked = response.headers.get("X-Linked-Size", "")
    length = response.headers.get("Content-Length", "") if response.is_success else ""
    return max(int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0 for text in (linked, length))


def _check_length(size: float) -> None:
    most = MOST.get()
    if most is not None and size > most:
        raise TooLongError(f"it is longer than {most} bytes")


class _Controlled(httpx.SyncByteStream):  # type: ignore[misc]
    """The body of an answer, received at the pace and as long as somebody waits for it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        spend = SPEND.get()
        for piece in self._stream:
            if spend is not None:
                spend(len(piece))
            _refuse()
            yield piece

    def close(self) -> None:
        self._stream.close()
