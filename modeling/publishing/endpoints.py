"""What Inference Endpoints look for in a repository: `handler.py`, and what to install for it (no torch)."""

from __future__ import annotations

import re
from importlib import resources
from importlib.metadata import requires

HANDLER_FILE, REQUIREMENTS_FILE = "handler.py", "requirements.txt"

# What the handler and the repository's own code import; this package is not among them.
_NEEDED = ("huggingface_hub", "safetensors", "torch", "transformers")
# What reads the samples of a task, and the extra that brings it.
_READING = {
    "images": ("torch", ("pillow",)),
    "sounds": ("audio", ("soundfile", "soxr")),
    "texts": ("runtime", ("tokenizers",)),
}


def is_our_handler(content: bytes) -> bool:
    """Whether a `handler.py` is one that this library wrote, in this version or another."""
    return content.startswith(_template().splitlines()[0].encode())


def endpoint_files(requirements: str = "", samples: str = "images") -> dict[str, str]:
    """The contents of `handler.py` and `requirements.txt`, by name.

    Args:
        requirements: The `requirements.txt` that is there. Its lines are kept; only packages that it does not
            name are added.
        samples: What the model's task classifies.
    """
    named = {name for line in requirements.splitlines() if (name := _name(line)) is not None}
    # Of the base, and of the extras that bring torch and what reads samples.
    extra, reading = _READING[samples]
    markers = ("", 'extra == "torch"', f'extra == "{extra}"')
    listed = (line.partition(";") for line in requires("pwl-hf") or [])
    ours = {_name(line): line.strip() for line, _, marker in listed if marker.strip() in markers}
    missing = [ours[name] for name in map(_name, sorted((*_NEEDED, *reading))) if name not in named]
    kept = [requirements.rstrip("\n")] if requirements.strip() else []
    return {HANDLER_FILE: _template(), REQUIREMENTS_FILE: "\n".join([*kept, *missing, ""])}


def _template() -> str:
    return resources.files("pwl_hf.modeling.publishing").joinpath("templates", HANDLER_FILE).read_text(encoding="utf-8")


def _name(line: str) -> str | None:
    """The package that a line of requirements is about, in one spelling."""
    found = re.match(r"\s*([A-Za-z0-9][\w.-]*)", line)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else None
