"""Files that come into place whole: written next to their place and moved into it (pure Python)."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SaveError


def write_text(target: Path, text: str) -> None:
    """Write a text file next to its place and move it there; line ends stay as they are."""
    with atomic_write(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_bytes(target: Path, content: bytes) -> None:
    """Write a file next to its place and move it there."""
    with atomic_write(target) as temporary:
        temporary.write_bytes(content)


def copy_file(source: Path, target: Path, sha256: str) -> None:
    """Copy a file next to its place and move it there; nothing to do if it is that file.

    Args:
        source: The file.
        target: Where the copy goes.
        sha256: The hash that the copy must have.

    Raises:
        SaveError: If the copy has another hash; `target` stays as it was.
    """
    if target.exists() and source.samefile(target):
        return
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
        found = sha256_of(temporary)
        if found != sha256:
            raise SaveError(
                f"{target} was not written: the copy of {source} has sha256 {found}, expected {sha256}; the source was "
                "changed meanwhile, or the disk is damaged: save again, or elsewhere"
            )


def sha256_of(local: Path) -> str:
    """The sha256 of a file, in hex."""
    with local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(target: Path) -> Path:
    """A name next to `target` of this thread alone: two that write the same file leave it as one of them meant it."""
    return target.with_name(f".{target.name}.{os.getpid()}.{threading.get_native_id()}.tmp")


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """A path next to `target` that takes its place when all went well, and is removed when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def leads_out(root: Path, path: str) -> bool:
    """True if a file of a folder lies elsewhere: it, or a folder above it, is a link out of that folder.

    The links of a snapshot in the Hub's cache may lead to that repository's blobs, and to those the cache shares.

    Args:
        root: The folder.
        path: The file's path in it.
    """
    root = Path(os.path.abspath(root))
    allowed = [root.resolve()]
    storage = storage_of(root / path)
    if storage is not None:
        # Not resolved themselves: a folder of blobs that is a link elsewhere is none.
        allowed += [storage.resolve() / "blobs", storage.parent.resolve() / "blobs"]
    real = (root / path).resolve()
    return not any(real.is_relative_to(folder) for folder in allowed)


def storage_of(pointer: Path) -> Path | None:
    """The folder of a repository in the Hub's cache (`models--org--name`) that a file of a snapshot lies in."""
    for folder in pointer.parents:
        if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
            return folder.parent
    return None
