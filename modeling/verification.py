"""Comparing files with what they must be, and remembering which were right (no torch).

A hash is computed once for each file on disk. What is remembered is tied to the file's identity in the file
system (device, inode, size, times of its last change), so a file that was written to is hashed again.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from huggingface_hub import constants

from .errors import RepositoryError
from .files import write_text
from .manifest import MANIFEST_FILE, FileEntry

# Longer than the tick of any file system's clock: a change after it cannot carry the same times.
_TICK = 0.02


def check_file(local: Path, entry: FileEntry, where: str) -> None:
    """Compare a weight file with its entry in the manifest of `where`.

    Raises:
        RepositoryError: If its size or sha256 is another.
    """
    size = local.stat().st_size
    if size != entry.bytes:
        raise RepositoryError(
            f"{where}: {entry.path!r} has {size} bytes, {MANIFEST_FILE} says {entry.bytes}; it is truncated or of "
            "another commit"
        )
    memory = _Memory(local)
    if memory.recalls(entry.sha256):
        return
    digest = sha256_of(local)
    if digest != entry.sha256:
        raise RepositoryError(
            f"{where}: {entry.path!r} has sha256 {digest}, {MANIFEST_FILE} says {entry.sha256}; it is corrupt or of "
            "another commit"
        )
    memory.keep(digest)


def sha256_of(local: Path) -> str:
    """The sha256 of a file, in hex."""
    with local.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_as_named(cached: Path) -> bool:
    """Whether a small file in the Hub's cache is what its name says.

    The cache names files by their ETag: the git hash of a small file, the sha256 of a large one.
    huggingface_hub itself never compares them. Where the cache keeps files under plain names, there is
    nothing to compare with.
    """
    name = cached.resolve().name
    if re.fullmatch(r"[0-9a-f]{40}", name):
        data = cached.read_bytes()
        # Git's own name for content, not a safeguard against people.
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return sha256_of(cached) == name
    return True


class _Memory:
    """What is known of one file as it is on disk now."""

    def __init__(self, local: Path) -> None:
        real = local.resolve()
        found = real.stat()
        # Were it hashed within the tick of its last change, a later change in that tick would go unnoticed.
        time.sleep(min(_TICK, max(0.0, found.st_ctime + _TICK - time.time())))
        self.real = real
        self.stamp = self._stamp(found)
        name = hashlib.sha256(os.fsencode(real)).hexdigest()
        self.note = Path(constants.HF_HOME, "pwl", "verified", name)

    def recalls(self, digest: str) -> bool:
        try:
            return self.note.read_text(encoding="ascii") == f"{digest} {self.stamp}\n"
        except (OSError, ValueError):
            return False

    def keep(self, digest: str) -> None:
        try:
            if self._stamp(self.real.stat()) == self.stamp:
                write_text(self.note, f"{digest} {self.stamp}\n")
        except OSError:
            pass  # A folder that cannot be written to: the file is hashed again next time.

    @staticmethod
    def _stamp(found: os.stat_result) -> str:
        return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
