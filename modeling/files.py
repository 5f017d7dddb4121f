"""Files that come into place whole: written beside it and moved into it (pure Python)."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(target: Path, text: str) -> None:
    """Write a text file beside its place and move it into it."""
    with beside(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file beside its place and move it into it; nothing to do if it is that file."""
    if target.exists() and source.samefile(target):
        return
    with beside(target) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path next to `target` that takes its place when all went well, and is removed when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Of this thread alone: two that write the same file leave it as one of them meant it.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_native_id()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
