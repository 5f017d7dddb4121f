"""Rounds of a section, in which its recipes take turns: what the store files them under, and what it holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.recipes.definitions import Definitions, Section, Table
from benchmarks.recipes.runs import Run, digest, run_of
from benchmarks.store import Entry


def round_runs(definitions: Definitions, table: Table, section: Section) -> dict[str, Run]:
    """What a round of a section trains, by recipe."""
    return {recipe: run_of(definitions, section.pair, recipe, 0, table.options) for recipe in section.recipes}


def round_key(runs: Mapping[str, Run], pair: str, number: int) -> str:
    """What the store files a round under."""
    return f"{pair}-round{number}-{digest({recipe: run.training.identity() for recipe, run in runs.items()})}"


@dataclass(frozen=True)
class Rounds:
    """The rounds of a section that the store holds, as they are defined now.

    Args:
        wanted: How many there should be.
        entries: Those that are there.
    """

    wanted: int
    entries: Sequence[Entry]

    @classmethod
    def of(cls, definitions: Definitions, table: Table, section: Section, stored: Mapping[str, Entry]) -> Rounds:
        """Find what is stored.

        Args:
            definitions: What is defined.
            table: Of the form `cost`.
            section: One of its sections.
            stored: The store's rounds by key.
        """
        runs = round_runs(definitions, table, section)
        keys = [round_key(runs, section.pair, number) for number in range(table.rounds)]
        return cls(table.rounds, [stored[key] for key in keys if key in stored])

    def speed(self, recipe: str) -> float | None:
        """Images/s of a recipe, the median; None if there is no round."""
        return _median([entry["images_per_second"][recipe] for entry in self.entries])

    def ratios(self, recipe: str, other: str) -> list[float]:
        """How many times as fast as another a recipe is, by round."""
        speeds = [entry["images_per_second"] for entry in self.entries]
        return [by_recipe[recipe] / by_recipe[other] for by_recipe in speeds]

    def ratio(self, recipe: str, other: str) -> float | None:
        """The median of these ratios; None if there is no round."""
        return _median(self.ratios(recipe, other))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
