"""Xet storage on disk, as the client's own library keeps it where it is told that its server is `local://FOLDER`.

The client puts chunks of content there, and a list of files with their Xet hash and sha256. The Hub only has to know
which is which.
"""

import struct
from pathlib import Path

# A list is made of records of this size; the first holds the list's own header.
_RECORD = 48
_END = b"\xff" * 32
_HAS_CHECKS, _HAS_SHA256 = 1 << 31, 1 << 30


class XetStorage:
    """The folder, and what is listed there.

    Args:
        root: the folder; the client makes it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The address that the client is given."""
        return f"local://{self.root}"

    def hash_of(self, sha256: str) -> str | None:
        """The Xet hash of the content with this sha256, None if it never came."""
        for file in self.root.glob("xet/xorbs/shards/*.mdb"):
            if found := _files(file.read_bytes()).get(sha256):
                return found
        return None


def _files(content: bytes) -> dict[str, str]:
    """sha256 -> Xet hash of the files that a list names."""
    found, at = {}, _RECORD
    while content[at : at + 32] not in (_END, b""):
        name = _hex(content[at : at + 32])
        flags, entries = struct.unpack("<II", content[at + 32 : at + 40])
        at += _RECORD * (1 + entries)
        if flags & _HAS_CHECKS:
            at += _RECORD * entries
        if flags & _HAS_SHA256:
            found[_hex(content[at : at + 32])] = name
            at += _RECORD
    return found


def _hex(raw: bytes) -> str:
    """As Xet writes hashes: four numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
