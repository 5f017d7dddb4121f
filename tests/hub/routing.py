"""From a request to the function that answers it, and from that function to an answer."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from . import errors
from .access import Access
from .errors import HubError
from .repository import Repository
from .store import Store

_PARTS = {
    "kind": "models|datasets|spaces",
    "prefix": "datasets/|spaces/|",
    "repo": "[^/]+/[^/]+?",
    "rev": "refs/[^/]+/[^/]+|[^/]+",
    "path": ".+",
    "name": ".+",
    "oid": "[0-9a-f]{64}",
    "access": "read|write",
}


@dataclass
class Reply:
    """An answer. The body is bytes, or the part of a file from ``start`` to before ``stop``."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    start: int = 0
    stop: int | None = None

    @property
    def length(self) -> int:
        """The size of the body."""
        if self.stop is not None:
            return self.stop - self.start
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size

    @classmethod
    def json(cls, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Reply":
        """An answer in JSON."""
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(data).encode())

    @classmethod
    def error(cls, error: HubError) -> "Reply":
        """An error as the Hub puts it: in the headers, and in the body."""
        headers = {"X-Error-Message": error.message, **error.headers}
        if error.code is not None:
            headers["X-Error-Code"] = error.code
        return cls.json({"error": error.message}, error.status, headers)


@dataclass
class Call:
    """A request as the functions that answer see it.

    ``params`` are the named parts of the route, unquoted; ``query`` maps names to lists of values; ``chunks``
    is the body, to be read once.
    """

    store: Store
    access: Access
    url: str
    user: str | None
    params: dict[str, str]
    query: dict[str, list[str]]
    headers: Message
    chunks: Iterator[bytes]

    @property
    def repo_type(self) -> str:
        """The type of the repository that the path names."""
        kind = self.params.get("kind") or self.params.get("prefix") or "models"
        return kind.rstrip("/").removesuffix("s")

    @property
    def revision(self) -> str:
        """The revision that the path names."""
        return self.params.get("rev", "main")

    def repo(self, write: bool = False, files: bool = False) -> Repository:
        """The repository that the path names, once the user may read it, write to it, or read its files."""
        repo = self.store.get(self.params["repo"], self.repo_type, self.user)
        self.access.check_read(self.user, repo)
        if write:
            self.access.check_write(self.user, repo.namespace)
        if files:
            self.access.check_files(self.user, repo)
        return repo

    def login(self) -> str:
        """The user; HubError 401 for an anonymous one."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def flag(self, name: str) -> bool:
        """A boolean of the query."""
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks)

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body() or b"{}")

    def repo_url(self, repo: Repository) -> str:
        """The address of a repository's page."""
        prefix = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
        return f"{self.url}/{prefix}{repo.repo_id}"


Answer = Callable[[Call], Reply]


class Router:
    """The functions that answer, by method and path."""

    def __init__(self, *parts: "Router") -> None:
        self._routes: list[tuple[str, re.Pattern[str], Answer]] = [route for part in parts for route in part._routes]

    def route(self, method: str, template: str) -> Callable[[Answer], Answer]:
        """Register a function for paths like ``/api/{kind}/{repo}/tree/{rev}`` (its parts: `_PARTS`)."""
        pattern = re.compile(re.sub(r"\{(\w+)\}", lambda part: f"(?P<{part[1]}>{_PARTS[part[1]]})", template))

        def register(answer: Answer) -> Answer:
            self._routes.append((method, pattern, answer))
            return answer

        return register

    def find(self, method: str, path: str) -> tuple[Answer, dict[str, str]]:
        """The function for a quoted path, and the unquoted parts; HEAD is answered as GET."""
        for route_method, pattern, answer in self._routes:
            if route_method == ("GET" if method == "HEAD" else method) and (match := pattern.fullmatch(path)):
                return answer, {name: unquote(part) for name, part in match.groupdict().items()}
        raise errors.HubError(404, f"no such endpoint: {method} {path}")
