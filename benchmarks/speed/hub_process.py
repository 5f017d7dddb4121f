"""What the process of a Hub runs; see `benchmarks.speed.hub`. It imports neither torch nor huggingface_hub.

It says its URL first. Then it answers what it is asked, in lines of JSON, and ends when its standard input does, so
also with the process that started it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.hub import HubServer, Request
from tests.hub.log import RequestLog
from tests.hub.store import Store

# Of the store itself; every repository has it.
_OWN = ".gitattributes"


class TimedLog(RequestLog):
    """Requests with their time of arrival, since they were last taken."""

    def __init__(self) -> None:
        super().__init__()
        self._arrived: list[tuple[float, Request]] = []

    def add(self, request: Request) -> None:
        """Note a request that has just arrived."""
        self._arrived.append((time.monotonic(), request))

    def take(self) -> list[dict[str, Any]]:
        """The requests since the last call, as `benchmarks.speed.hub.Asked` names their parts."""
        taken, self._arrived = self._arrived, []
        return [
            {"at": at, "method": r.method, "path": r.path, "file": r.file, "status": r.status, "sent": r.sent}
            for at, r in taken
        ]


def fill(store: Store, repo_id: str, folder: Path) -> None:
    """Make a repository hold the files of a folder; one that does already stays as it is.

    Args:
        store: The Hub's repositories.
        repo_id: The repository's name.
        folder: Its files. A folder that is a network of its own (`student/` of a pair) and hidden ones stay out.
    """
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    wanted = {name: path for name, path in paths.items() if not name.startswith(("student/", "."))}
    if repo_id not in store.repositories():
        store.create_repo(repo_id)
    held = {name: entry.sha256 for name, entry in store.entries(repo_id).items() if name != _OWN}
    if held != {name: _sha256(path) for name, path in wanted.items()}:
        gone = [name for name in held if name not in wanted]
        store.commit(repo_id, dict(wanted), deletions=gone)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(root: Path, folders: dict[str, Path]) -> None:
    """Serve folders as repositories until standard input ends.

    Args:
        root: The Hub's own folder; one of an earlier run is read back.
        folders: By the repository's name.
    """
    server = HubServer(root, users={})
    log = TimedLog()
    server.log = log
    for repo_id, folder in folders.items():
        fill(server.store, repo_id, folder)
    with server:
        _say(server.url)
        for line in sys.stdin:
            order = json.loads(line)
            if "line" in order:
                server.bandwidth, server.latency = order["line"]
            _say({"requests": log.take(), "errors": server.errors})


def _say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), {name: Path(folder) for name, folder in json.loads(sys.argv[2]).items()})
