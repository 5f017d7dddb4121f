"""A run as JSON and as a Markdown table of ratios."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.timing import Spread


def write_json(path: Path, name: str, spreads: dict[str, Spread]) -> None:
    """Add a run to a JSON file of runs, in place of an earlier one of the same name."""
    runs = json.loads(path.read_text()) if path.is_file() else {}
    runs[name] = {
        "seconds": {what: asdict(spread) for what, spread in spreads.items()},
        "versions": {package: version(package) for package in ("torch", "transformers", "huggingface_hub")},
        "machine": platform.machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=2) + "\n")


def ratio_table(spreads: dict[str, Spread], base: str = "teacher") -> str:
    """Each thing's time as a part of the base's, and how many times sooner that is."""
    rows = [f"| what | time / {base}'s | quartiles | times sooner |", "|---|---|---|---|"]
    whole = spreads[base].median
    for name, spread in spreads.items():
        rows.append(
            f"| {name} | {spread.median / whole:.2f} | {spread.low / whole:.2f} to {spread.high / whole:.2f} | "
            f"{whole / spread.median:.1f} |"
        )
    return "\n".join(rows)
