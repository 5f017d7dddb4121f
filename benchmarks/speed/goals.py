"""What figures should reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

FILE = Path(__file__).with_name("goals.yaml")


@dataclass(frozen=True)
class Goal:
    """The most that a figure should be.

    Args:
        must: What it must not be above.
        aim: What it should not be above.
    """

    must: float | None = None
    aim: float | None = None

    def judge(self, value: float) -> str:
        """`"aim met"`, `"met"`, or `"missed"` with by how much."""
        if self.aim is not None and value <= self.aim:
            return "aim met"
        limit = self.must if self.must is not None else self.aim
        if limit is None or value <= limit:
            return "met"
        return f"**missed** by {value - limit:.2g}"


def load_goals() -> dict[str, dict[str, Goal]]:
    """Goals by measure and figure."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {measure: {name: Goal(**goal) for name, goal in goals.items()} for measure, goals in content.items()}
