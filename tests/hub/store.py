"""The Hub's repositories on disk, and the short cuts by which tests fill and inspect them without HTTP."""

import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from .blobs import Blobs
from .commits import Commit, Delete, Edit, FileEntry, Put, make_entry, needs_lfs
from .errors import HubError, repo_not_found
from .repository import Repository
from .xet import XetStorage

GITATTRIBUTES = b"".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n".encode() for suffix in (".bin", ".png", ".safetensors")
)


class Store:
    """All repositories under one folder. A folder written before is read back.

    As on the real Hub, a new repository starts with one commit that holds ``.gitattributes``.

    Args:
        root: the folder; made if missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = Blobs(root / "blobs")
        self.xet = XetStorage(root / "xet")
        self._lock = threading.RLock()
        self._repos: dict[tuple[str, str], Repository] = {}
        for file in sorted(root.glob("repos/*/*/*/repo.json")):
            repo = Repository(file.parent)
            self._repos[repo.repo_type, repo.repo_id] = repo

    def get(self, repo_id: str, repo_type: str = "model", user: str | None = "") -> Repository:
        """The repository, or HubError; ``user`` only shapes the error (None is asked to log in)."""
        try:
            return self._repos[repo_type, repo_id]
        except KeyError:
            raise repo_not_found(user) from None

    def repositories(self) -> list[str]:
        """The identifiers of all model repositories."""
        return [repo_id for repo_type, repo_id in self._repos if repo_type == "model"]

    def create_repo(
        self,
        repo_id: str,
        private: bool = False,
        gated: bool = False,
        repo_type: str = "model",
        author: str = "system",
    ) -> Repository:
        """Make a repository; HubError 409 if there is one."""
        with self._lock:
            if (repo_type, repo_id) in self._repos:
                raise HubError(409, f"You already created this {repo_type} repo: {repo_id}")
            repo = Repository(self.root / "repos" / repo_type / repo_id, repo_id, repo_type)
            repo.update(private=private, gated=gated)
            entry = make_entry(".gitattributes", self.blobs, self.blobs.add(GITATTRIBUTES), lfs=False)
            repo.initialize([Put(entry, "added")], author)
            self._repos[repo_type, repo_id] = repo
            return repo

    def delete_repo(self, repo_id: str, repo_type: str = "model") -> None:
        """Remove a repository and its history (not the blobs, which others may share)."""
        with self._lock:
            repo = self.get(repo_id, repo_type)
            del self._repos[repo_type, repo_id]
            shutil.rmtree(repo.root)

    def set_private(self, repo_id: str, private: bool = True) -> None:
        """Hide a repository from everybody but its owner, or show it."""
        self.get(repo_id).update(private=private)

    def set_gated(self, repo_id: str, gated: bool = True) -> None:
        """Ask for access to a repository's files, or open them."""
        self.get(repo_id).update(gated=gated)

    def grant(self, repo_id: str, user: str) -> None:
        """Let a user read the files of a gated repository."""
        repo = self.get(repo_id)
        repo.update(granted=[*repo.granted, user])

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path] | None = None,
        message: str = "commit",
        branch: str = "main",
        deletions: Iterable[str] = (),
        author: str = "system",
    ) -> str:
        """Commit without HTTP and return the oid. Deletions come first; one that ends in "/" is a folder."""
        repo = self.get(repo_id)
        edits: list[Edit] = [Delete(path.rstrip("/"), folder=path.endswith("/")) for path in deletions]
        for path, content in (files or {}).items():
            sha256 = self.blobs.add(content)
            lfs = needs_lfs(path, self.blobs.path(sha256).stat().st_size)
            edits.append(Put(make_entry(path, self.blobs, sha256, lfs), "lfs" if lfs else "added"))
            if lfs:
                self.add_lfs(repo, sha256)
        return repo.commit(edits, message, author, branch).oid

    def add_lfs(self, repo: Repository, sha256: str) -> None:
        """Let a repository use this LFS content, which is stored already."""
        with repo.lock:
            if sha256 not in repo.lfs_objects:
                repo.update(lfs_objects=[*repo.lfs_objects, sha256])

    def head(self, repo_id: str, branch: str = "main") -> str:
        """The commit a branch (or any revision) stands at."""
        return self.get(repo_id).resolve(branch).oid

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The history of a revision, newest first; the last one made `.gitattributes`."""
        return self.get(repo_id).history(revision)

    def entries(self, repo_id: str, revision: str = "main") -> dict[str, FileEntry]:
        """Sizes and hashes of the files at a revision, by path."""
        return dict(self.get(repo_id).resolve(revision).files)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files at a revision with their content, `.gitattributes` included."""
        return {path: self.blobs.read(entry.sha256) for path, entry in self.entries(repo_id, revision).items()}
