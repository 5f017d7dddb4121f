"""Folders that are made once for all processes of a test run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of the run to ask for it makes; not to be written to.

    Args:
        factory: pytest's.
        name: The folder's name, of this one use.
        make: Makes it and what is in it.
    """
    base = factory.getbasetemp()
    # The processes of pytest-xdist have folders of their own in a common one.
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, whole = root / name, root / f"{name}.whole"
    with FileLock(root / f"{name}.lock"):
        if not whole.exists():
            make(folder)
            whole.touch()
    return folder
