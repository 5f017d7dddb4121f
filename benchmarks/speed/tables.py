"""The store as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.goals import load_goals
from benchmarks.speed.suite import SUITE

MISSING = "not measured yet"


def key(measure: str, pair: str) -> str:
    """What the store files a measure of a pair under."""
    return f"{measure}/{pair}"


def measured_pairs(stored: Mapping[str, Any], measure: str) -> list[str]:
    """The pairs that the store has a measure of."""
    return [pair for name, pair in (known.split("/") for known in stored) if name == measure]


def render(stored: Mapping[str, Mapping[str, Any]], pairs: Sequence[str], command: str) -> str:
    """All measures of some pairs, and of others that there are; what has not been measured is visibly empty.

    Args:
        stored: The store's entries by key.
        pairs: The pairs' names.
        command: What made it.
    """
    goals = load_goals()
    parts = ["# Speed", f"Made by `{command}`.", "Medians and quartiles over rounds in which all things took turns."]
    for name, entry in SUITE.items():
        parts += [f"## {entry.title}", entry.about]
        for pair in dict.fromkeys([*(entry.pairs or pairs), *measured_pairs(stored, name)]):
            found = stored.get(key(name, pair))
            if found is None:
                parts.append(f"{pair}: {MISSING}.")
                continue
            lines = [f"| {pair} | median | quartiles | of | goal (aim) | |", "|---|---|---|---|---|---|"]
            for figure in found["figures"]:
                value, unit = figure["value"], "" if figure["unit"] == "x" else f" {figure['unit']}"
                goal = goals.get(name, {}).get(figure["name"])
                limits = "" if goal is None else " ".join(_limit(goal.must, "{}") + _limit(goal.aim, "({})"))
                verdict = "" if goal is None else goal.judge(value["median"])
                cells = [figure["name"], f"{_number(value['median'])}{unit}", _quartiles(value), figure["base"] or ""]
                lines.append(f"| {' | '.join([*cells, limits, verdict])} |")
            parts.append("\n".join(lines))
            parts.append(f"{found['device']}, {found['date'][:10]}, {_rounds(found['figures'])}.")
    return "\n\n".join(parts) + "\n"


def _limit(value: float | None, form: str) -> list[str]:
    return [] if value is None else [form.format(_number(value))]


def _number(value: float) -> str:
    """Three digits that count, or all of a great number."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _quartiles(value: Mapping[str, float]) -> str:
    return f"{_number(value['low'])} to {_number(value['high'])}" if value["count"] > 1 else ""


def _rounds(figures: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({figure["value"]["count"] for figure in figures})
    if counts == [1]:
        return "one round"
    return f"{counts[0]} rounds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} values a figure"
