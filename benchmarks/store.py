"""The store: one JSON file of results that grows run by run.

The file holds one entry a line, so that a version control system shows a new run as a new line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from pwl_hf.modeling.repository.files import write_text

VERSION = 1
Entry = dict[str, Any]


class StoreError(ValueError):
    """A file that is not a store of results; the message says why."""


class Store:
    """Results by kind and key.

    Any number of processes may add at the same time: each reads, adds and replaces the file under a lock.

    Args:
        path: The JSON file; it is made with the first entry.
        kinds: What it holds. Recipes: `runs` (accuracies of a trained model), `rounds` (speeds side by side).
    """

    def __init__(self, path: Path, kinds: Sequence[str] = ("runs", "rounds")) -> None:
        self.path = path
        self.kinds = kinds

    def read(self, kind: str) -> dict[str, Entry]:
        """All entries of a kind by key.

        Raises:
            StoreError: If the file is not a store, or of a version that this code does not know.
        """
        return self._read()[kind]

    def add(self, kind: str, key: str, entry: Mapping[str, Any]) -> None:
        """Add an entry, in place of one of the same key. What is there from others stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            content = self._read()
            content[kind][key] = dict(entry)
            write_text(self.path, _text(content))

    def _read(self) -> dict[str, dict[str, Entry]]:
        if not self.path.exists():
            return {kind: {} for kind in self.kinds}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(f"{self.path} is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("version") != VERSION:
            found = content.get("version") if isinstance(content, dict) else type(content).__name__
            raise StoreError(f"{self.path} is no store of results of version {VERSION}, found {found!r}")
        return {kind: content.get(kind, {}) for kind in self.kinds}


def _text(content: Mapping[str, Mapping[str, Entry]]) -> str:
    parts = [f'"version": {VERSION}']
    for kind in content:
        lines = [f" {json.dumps(key)}: {json.dumps(content[kind][key])}" for key in sorted(content[kind])]
        parts.append(f'"{kind}": {{\n' + ",\n".join(lines) + ("\n}" if lines else "}"))
    return "{\n" + ",\n".join(parts) + "\n}\n"
