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
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return {
        "versions": {package: version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "commit": git.stdout.strip() or None,
        "device": torch.cuda.get_device_name(0) if cuda else f"CPU, {platform.machine()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
