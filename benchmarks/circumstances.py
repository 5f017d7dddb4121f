"""When, with which versions, and on what a result came about."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import version
from typing import Any

_PACKAGES = (
    "pwl-hf",
    "torch",
    "transformers",
    "onnxruntime",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
)


def circumstances() -> dict[str, Any]:
    """`versions` of Python and packages, the checkout's `commit`, the `device`, and the `date` (UTC)."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "versions": {package: version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "commit": _commit(),
        "device": torch.cuda.get_device_name(0) if cuda else f"CPU, {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The checkout's; None outside one, or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:
        return None
