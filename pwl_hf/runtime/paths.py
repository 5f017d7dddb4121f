"""Files that a caller names, of images and of sounds."""

from __future__ import annotations

import os
from typing import Any

from pwl_hf.modeling.errors import InputError


def path_of(sample: Any, name: str, kinds: str, otherwise: str) -> str:
    """The path of a sample that is neither given itself nor an address.

    Args:
        sample: What the caller gave.
        name: What errors call it.
        kinds: What samples may be, in words.
        otherwise: What may be given in place of a file.

    Raises:
        InputError: If it is no path, or an address.
    """
    if not isinstance(sample, str | os.PathLike) or isinstance(path := os.fspath(sample), bytes):
        raise InputError(f"{name} is of type {type(sample).__name__}, and {kinds}")
    if "://" in path or path.startswith("data:"):
        raise InputError(f"{name} is an address, {path!r:.200}: download it first, and give its file or {otherwise}")
    return path
