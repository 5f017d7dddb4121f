"""What the store holds for a section of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.recipes import masks
from benchmarks.recipes.definitions import Definitions, Section
from benchmarks.recipes.estimates import Accuracies
from benchmarks.recipes.runs import run_of
from benchmarks.store import Entry


@dataclass(frozen=True)
class Results:
    """The results of a section: those of the runs as they are defined now, whatever else the store holds.

    Args:
        num_blocks: The number of blocks N.
        samples: What was measured on, in words.
        seeds: The seeds that are wanted.
        runs: The store's entries by recipe and seed; those that are missing are not in it.
    """

    num_blocks: int
    samples: str
    seeds: tuple[int, ...]
    runs: Mapping[str, Mapping[int, Entry]]

    @classmethod
    def of(
        cls, definitions: Definitions, section: Section, seeds: Sequence[int], stored: Mapping[str, Entry]
    ) -> Results:
        """Find what is stored."""
        runs: dict[str, dict[int, Entry]] = {}
        for recipe in section.recipes:
            keys = {seed: run_of(definitions, section.pair, recipe, seed).key for seed in seeds}
            runs[recipe] = {seed: stored[key] for seed, key in keys.items() if key in stored}
        pair = definitions.pairs[section.pair]
        return cls(pair.num_blocks, pair.samples, tuple(seeds), runs)

    def accuracies(self, recipe: str) -> Accuracies:
        """The accuracy of each mask by seed.

        Of runs that measured the stages alone, only the student's: nobody trained their converters.
        """
        student = masks.student(self.num_blocks)
        found = {seed: entry["accuracy"] for seed, entry in self.runs[recipe].items()}
        return {
            seed: measured if len(measured) == 2**self.num_blocks else {student: measured[student]}
            for seed, measured in found.items()
        }

    def entries(self) -> Iterator[Entry]:
        """All entries."""
        for by_seed in self.runs.values():
            yield from by_seed.values()

    def about(self) -> str:
        """What was measured on, how often and on what: to stand beside the numbers."""
        entries = list(self.entries())
        seeds = f"seed {self.seeds[0]}"
        if len(self.seeds) > 1:
            seeds = f"mean ± standard deviation over the seeds {_listed(self.seeds)}"
        if not entries:
            return f"{seeds.capitalize()}; not measured yet."
        data = _listed({f"{entry['data']}, {entry['test_images']:,} test {self.samples}" for entry in entries})
        return f"{data}; {seeds}, in percent; {_listed({entry['device'] for entry in entries})}."


def _listed(values: object) -> str:
    return ", ".join(str(value) for value in sorted(values))  # type: ignore[call-overload]
