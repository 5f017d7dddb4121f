"""Commits as values: what a repository holds at a commit, and what a commit was asked to do. No HTTP."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .blobs import Blobs
from .errors import HubError, entry_not_found

LFS_SUFFIXES = (".safetensors", ".bin", ".png")
LFS_SIZE = 10 * 1024 * 1024


@dataclass(frozen=True)
class FileEntry:
    """One file of a commit; ``oid`` is git's name for it (of the pointer file, with LFS)."""

    path: str
    size: int
    sha256: str
    oid: str
    lfs: bool


@dataclass(frozen=True)
class Operations:
    """The operations a commit received, by path.

    A copied LFS file arrives as an LFS file without a size. A copied regular file is downloaded and sent
    again by the client, so it counts under ``added``.
    """

    added: tuple[str, ...] = ()
    lfs: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    deleted_folders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Commit:
    """An immutable snapshot of a repository."""

    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    operations: Operations
    files: Mapping[str, FileEntry] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """A form that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Commit":
        """The commit that `to_json` wrote."""
        operations = Operations(**{kind: tuple(paths) for kind, paths in data.pop("operations").items()})
        files = {path: FileEntry(**entry) for path, entry in data.pop("files").items()}
        return cls(**data, operations=operations, files=files)


@dataclass(frozen=True)
class Put:
    """Write a file: sent inside the commit ("added"), through LFS ("lfs"), or already there ("copied")."""

    entry: FileEntry
    kind: Literal["added", "lfs", "copied"]


@dataclass(frozen=True)
class Delete:
    """Remove a file, or a folder (path without trailing slash)."""

    path: str
    folder: bool = False


Edit = Put | Delete


def needs_lfs(path: str, size: int) -> bool:
    """Whether the server asks for a file to come through LFS. An empty one never does."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The text that git holds in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def make_entry(path: str, blobs: Blobs, sha256: str, lfs: bool) -> FileEntry:
    """Describe a stored blob as a file of a commit."""
    if path.startswith("/") or not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise HubError(400, f"invalid path in commit: {path!r}")
    size = blobs.path(sha256).stat().st_size
    return describe(path, sha256, size, None if lfs else blobs.read(sha256))


def describe(path: str, sha256: str, size: int, content: bytes | None = None) -> FileEntry:
    """A file of a commit; without content, git holds a pointer."""
    held = lfs_pointer(sha256, size) if content is None else content
    oid = hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()
    return FileEntry(path, size, sha256, oid, lfs=content is None)


def apply(files: Mapping[str, FileEntry], edits: Iterable[Edit]) -> dict[str, FileEntry]:
    """The files after the edits, done in the order given; deleting what is not there raises HubError."""
    result = dict(files)
    for edit in edits:
        if isinstance(edit, Put):
            result[edit.entry.path] = edit.entry
            continue
        gone = [path for path in result if path == edit.path or (edit.folder and path.startswith(edit.path + "/"))]
        if edit.folder:
            gone = [path for path in gone if path != edit.path]
        if not gone:
            raise entry_not_found(f"A file with this name doesn't exist: {edit.path}")
        for path in gone:
            del result[path]
    return dict(sorted(result.items()))


def summarize(edits: Iterable[Edit]) -> Operations:
    """The edits, sorted by kind."""
    found: dict[str, list[str]] = {}
    for edit in edits:
        if isinstance(edit, Put):
            found.setdefault(edit.kind, []).append(edit.entry.path)
        else:
            found.setdefault("deleted_folders" if edit.folder else "deleted", []).append(edit.path)
    return Operations(**{kind: tuple(paths) for kind, paths in found.items()})
