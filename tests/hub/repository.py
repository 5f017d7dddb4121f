"""One repository: its commits, and the branches, tags and pull requests that point at them."""

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .commits import Commit, Edit, FileEntry, apply, summarize
from .errors import HubError, revision_not_found

_STATE = ("repo_id", "repo_type", "private", "gated", "refs", "lfs_objects", "granted")


class Repository:
    """A repository kept in a folder: ``repo.json``, and one file under ``commits/`` for each snapshot.

    ``refs`` maps git names (``refs/heads/main``, ``refs/tags/v1``, ``refs/pr/1``) to commits. ``lfs_objects``
    holds the sha256 of the LFS content that this repository may use: what another repository uploaded has to
    be duplicated here first. ``granted`` names the users who may read the files although it is gated.

    Args:
        root: the repository's folder; an existing one is read back.
        repo_id: such as ``"tester/model"``.
        repo_type: ``"model"``, ``"dataset"`` or ``"space"``.
    """

    def __init__(self, root: Path, repo_id: str = "", repo_type: str = "model") -> None:
        self.root = root
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.private = False
        self.gated = False
        self.refs: dict[str, str] = {}
        self.lfs_objects: list[str] = []
        self.granted: list[str] = []
        self.commits: dict[str, Commit] = {}
        self.lock = threading.RLock()
        if (root / "repo.json").exists():
            self.__dict__.update(json.loads((root / "repo.json").read_text()))
            for file in (root / "commits").glob("*.json"):
                self.commits[file.stem] = Commit.from_json(json.loads(file.read_text()))

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.repo_id.split("/")[0]

    def update(self, **settings: Any) -> None:
        """Change ``private``, ``gated``, ... and write them to disk."""
        with self.lock:
            self.__dict__.update(settings)
            _write_json(self.root / "repo.json", {key: getattr(self, key) for key in _STATE})

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, full reference or 40-hex name stands for."""
        if revision in self.commits:
            return self.commits[revision]
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.commits[self.refs[name]]
        raise revision_not_found(revision)

    def target(self, revision: str) -> str:
        """The reference that a commit to ``revision`` moves: a branch or a pull request, never a tag."""
        name = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if name not in self.refs or name.startswith("refs/tags/"):
            raise revision_not_found(revision)
        return name

    def commit(
        self,
        edits: Sequence[Edit],
        title: str,
        author: str,
        revision: str = "main",
        description: str = "",
        parent: str | None = None,
        pull_request: bool = False,
    ) -> Commit:
        """Make a commit on top of ``revision``, or on a new pull request made from it.

        Raises:
            HubError: 412 if ``parent`` is given and no longer the head, 404 if a deleted path is not there.
        """
        with self.lock:
            base = self.resolve(revision) if pull_request else self.commits[self.refs[self.target(revision)]]
            if parent is not None and parent != base.oid:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            ref = f"refs/pr/{len(self.pull_requests()) + 1}" if pull_request else self.target(revision)
            files = apply(base.files, edits)
            commit = self._add(base.oid, title, description, author, edits, files)
            self.set_ref(ref, commit.oid)
            return commit

    def initialize(self, edits: Sequence[Edit], author: str) -> None:
        """Make the first commit, on a new ``main``."""
        commit = self._add(None, "initial commit", "", author, edits, apply({}, edits))
        self.set_ref("refs/heads/main", commit.oid)

    def set_ref(self, name: str, oid: str | None, create: bool = False) -> None:
        """Point a reference at a commit; with ``create`` it must be new; None removes it."""
        with self.lock:
            if create and name in self.refs:
                raise HubError(409, f"Reference already exists: {name}")
            if oid is None and name not in self.refs:
                raise revision_not_found(name)
            refs = {**self.refs, name: oid} if oid else {key: self.refs[key] for key in self.refs if key != name}
            self.update(refs=refs)

    def pull_requests(self) -> list[str]:
        """The references of the pull requests, oldest first."""
        return [name for name in self.refs if name.startswith("refs/pr/")]

    def history(self, revision: str) -> list[Commit]:
        """The commits up to a revision, newest first."""
        commits = [self.resolve(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def _add(
        self,
        parent: str | None,
        title: str,
        description: str,
        author: str,
        edits: Sequence[Edit],
        files: dict[str, FileEntry],
    ) -> Commit:
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        seed = (self.repo_type, self.repo_id, parent, title, date, len(self.commits), sorted(files))
        oid = hashlib.sha1(repr(seed).encode()).hexdigest()
        commit = Commit(oid, parent, title, description, author, date, summarize(edits), files)
        _write_json(self.root / "commits" / f"{oid}.json", commit.to_json())
        self.commits[oid] = commit
        return commit


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data))
    os.replace(temporary, path)
