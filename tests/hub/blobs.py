"""File contents on disk, each under its sha256."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import HubError

CHUNK = 1 << 16


class Blobs:
    """A folder of immutable files named by the sha256 of their content.

    Args:
        root: the folder; made if missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where the content with this sha256 lies (or would lie)."""
        return self.root / sha256

    def read(self, sha256: str) -> bytes:
        """The content with this sha256."""
        return self.path(sha256).read_bytes()

    def add(self, content: bytes | Path | Iterable[bytes], expected: str | None = None) -> str:
        """Store content and return its sha256; HubError if it differs from ``expected``."""
        digest = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=self.root, prefix="tmp-")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in _chunks(content):
                    digest.update(chunk)
                    file.write(chunk)
            sha256 = digest.hexdigest()
            if expected is not None and sha256 != expected:
                raise HubError(422, f"uploaded content has sha256 {sha256}, expected {expected}")
            os.replace(temporary, self.path(sha256))
        finally:
            temporary.unlink(missing_ok=True)
        return sha256


def _chunks(content: bytes | Path | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
    elif isinstance(content, Path):
        with content.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    else:
        yield from content
