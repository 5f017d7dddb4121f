"""Which versions are installed, in a line."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from pwl_hf import __version__

_SHOWN = ("huggingface_hub", "torch", "transformers", "onnxruntime")


def versions() -> str:
    """The library's version, and those of Python, what it stands on, and the system: for a report."""
    found = [f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"pwl-hf {__version__} ({', '.join(found)}, {platform.system()})"
