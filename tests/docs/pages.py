"""The Markdown files that a reader meets, and what is in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(r"^(```+)(\w*)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, what else its first line says, and its lines."""

    language: str
    notes: str
    content: str


def fences(page: Path) -> list[Fence]:
    """The fenced blocks of a page, in order."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Fence(match[2], match[3].strip(), match[4]) for match in found]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def table(page: Path, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first column has this title, by the first cell without backticks."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in prose(page).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0].strip() == first:
            inside = True
        elif inside and not line.startswith("|-"):
            rows[cells[0].strip("`")] = cells[1:]
    return rows
