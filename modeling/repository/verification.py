"""Comparing files with their hashes, and remembering which were right (no torch).

Each file on disk is hashed once. The note of it is tied to the file's identity in the file system (device, inode,
size, times of its last change), so a file that was written to is hashed again. It is also tied to the boot of the
machine: a loss of power may take back what was read before. Where there is no boot id, nothing is remembered.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants

from ..errors import RepositoryError
from .files import sha256_of, storage_of, write_text
from .layout import MANIFEST_FILE
from .manifest import ListedFile

# Longer than a tick of any file system's clock: a change after it has other times.
_TICK = 0.02

# Differs from boot to boot, on Linux.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Device, inode, size, mtime and ctime.
Stamp = tuple[int, int, int, int, int]


def stamp_of(local: Path) -> Stamp:
    """The identity of a file; it changes when the file is written to or replaced."""
    found = local.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_unchanged(compared: tuple[Path, Stamp] | None) -> bool:
    """Whether a file is still the one that was compared: a folder may be written to by others in the meantime.

    Args:
        compared: The file and its stamp; None for one that never was.
    """
    return compared is not None and compared[0].is_file() and stamp_of(compared[0]) == compared[1]


def check_file(local: Path, entry: ListedFile, where: str) -> Stamp:
    """Compare a weight file with its entry in the manifest of `where`.

    Returns:
        The stamp of the file that was compared.

    Raises:
        RepositoryError: If its size or sha256 is another, or it cannot be read.
    """
    try:
        if local.exists() and not local.is_file():
            raise RepositoryError(f"{where}: {entry.path!r} is no file: remove {local}, and load it again")
        memory = _Memory(local)
        size = memory.stamp[2]
        if size != entry.bytes:
            raise RepositoryError(
                f"{where}: {entry.path!r} has {size} bytes, {MANIFEST_FILE} says {entry.bytes}; it is truncated or of "
                "another commit"
            )
        if memory.recalls(entry.sha256):
            _read_ahead(local)
            return memory.stamp
        digest = sha256_of(local)
    except OSError as error:
        raise RepositoryError(f"{where}: {entry.path!r} cannot be read: {error}") from error
    if digest != entry.sha256:
        raise RepositoryError(
            f"{where}: {entry.path!r} has sha256 {digest}, {MANIFEST_FILE} says {entry.sha256}; it is corrupt or of "
            "another commit"
        )
    memory.keep(digest)
    return memory.stamp


def _read_ahead(local: Path) -> None:
    """Ask the kernel to read a file ahead, where it takes such advice."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(local, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def is_as_named(cached: Path) -> bool | None:
    """True if a file in the Hub's cache matches the ETag that names it; None if its name is no hash.

    huggingface_hub itself never compares them.
    """
    # One link only: the blob may itself be a link to a store that repositories share, under another name.
    return is_named(cached, Path(os.readlink(cached)).name if cached.is_symlink() else cached.name)


def is_named(local: Path, etag: str) -> bool | None:
    """True if a file matches an ETag; None if that is no hash.

    Args:
        local: The file.
        etag: The git hash of a small file, the sha256 of a large one.
    """
    etag = etag.lower()
    try:
        if not local.is_file():
            # A pipe would be waited for.
            return False
        if re.fullmatch(r"[0-9a-f]{40}", etag):
            return etag in git_hashes(local.read_bytes())
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            return sha256_of(local) == etag
    except OSError:
        return False
    return None


def git_hashes(content: bytes) -> list[str]:
    """Git's hash of a content, and that of mirrors which leave out git's prefix."""
    # Names, not a safeguard against attacks.
    return [
        hashlib.sha1(prefix + content, usedforsecurity=False).hexdigest()
        for prefix in (b"blob %d\0" % len(content), b"")
    ]


def pointer_of(cached: Path) -> Path:
    """The cache's entry for a file: the file, its link, or the first link among the folders above it."""
    storage = storage_of(cached)
    if storage is None:
        return cached
    commit, *parts = cached.relative_to(storage / "snapshots").parts
    place = storage / "snapshots" / commit
    for part in parts:
        place /= part
        if place.is_symlink():
            break
    return place


def blob_of(cached: Path) -> Path | None:
    """The blob that a file's pointer links to; None if it is no link, or leads elsewhere."""
    pointer, storage = pointer_of(cached), storage_of(cached)
    if storage is None or not pointer.is_symlink():
        return None
    # One link only, as above.
    blob = Path(os.path.normpath(pointer.parent.resolve() / os.readlink(pointer)))
    return blob if blob.parent == storage.resolve() / "blobs" else None


def discard(cached: Path) -> None:
    """Remove a damaged file from the Hub's cache: its pointer, and its blob if that is this repository's own."""
    blob = blob_of(cached)
    for path in (pointer_of(cached), blob):
        if path is not None:
            with suppress(OSError):
                # Of a folder, only an empty one.
                (Path.rmdir if path.is_dir() and not path.is_symlink() else Path.unlink)(path)


class _Memory:
    """The note of one file as it is on disk now."""

    def __init__(self, local: Path) -> None:
        self.real = local.resolve()
        changed = self.real.stat().st_ctime
        # Hashed within the tick of its last change, a later change in that tick would go unnoticed.
        time.sleep(min(_TICK, max(0.0, changed + _TICK - time.time())))
        self.stamp = stamp_of(self.real)
        name = hashlib.sha256(os.fsencode(self.real)).hexdigest()
        self.note = Path(constants.HF_HOME, "pwl", "verified", name)

    def recalls(self, digest: str) -> bool:
        try:
            return self.note.read_text(encoding="ascii") == self._text(digest)
        except (OSError, ValueError):
            return False

    def keep(self, digest: str) -> None:
        try:
            if stamp_of(self.real) == self.stamp:
                write_text(self.note, self._text(digest))
        except OSError:
            pass  # No boot id, or nowhere to write: the file is hashed again next time.

    def _text(self, digest: str) -> str:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        return f"{digest} {' '.join(map(str, self.stamp))} {boot}\n"
