"""What the server was asked, for tests that count requests and bytes."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_RESOLVE = re.compile(r"/resolve/(?:refs/[^/]+/[^/]+|[^/]+)/(.+)$")


@dataclass
class Request:
    """One request, filled in as it proceeds: what a client has received is already counted here.

    Attributes:
        method: ``"GET"``, ...
        path: the path, unquoted, without the query.
        query: the raw query string.
        range: the Range header.
        user: the name the token stands for; None without a valid one.
        status: the answer's status; 0 until there is one.
        received: bytes of the request's body.
        sent: bytes of the answer's body.
        fault: the kind of fault rule that struck.
    """

    method: str
    path: str
    query: str = ""
    range: str | None = None
    user: str | None = None
    status: int = 0
    received: int = 0
    sent: int = 0
    fault: str | None = None

    @property
    def file(self) -> str | None:
        """The file's path in its repository, for a request that resolves a file."""
        match = _RESOLVE.search(self.path)
        return match[1] if match else None


class RequestLog:
    """All requests in order of arrival, and the recordings that run at the moment."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._recordings: list[list[Request]] = []
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        """Note a request that has just arrived."""
        with self._lock:
            for requests in (self.requests, *self._recordings):
                requests.append(request)

    @contextmanager
    def record(self) -> Iterator[list[Request]]:
        """A list that receives the requests that arrive within the block."""
        recording: list[Request] = []
        with self._lock:
            self._recordings.append(recording)
        try:
            yield recording
        finally:
            with self._lock:
                self._recordings = [other for other in self._recordings if other is not recording]
