"""What a measure is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from benchmarks.speed.pairs import Pair, repository
from benchmarks.speed.timing import Spread

# Rows that several measures have.
TEACHER_ROW, STUDENT_ROW = "transformers' teacher", "transformers' student"
FIRST_ROW, WHOLE_ROW = "first answer", "all stages, one answer at the end"


@dataclass(frozen=True)
class Place:
    """What is measured, and where.

    Args:
        name: The pair's name.
        pair: The pair.
        data: The folder in which repositories are made and kept.
        repeats: How many rounds count.
    """

    name: str
    pair: Pair
    data: Path
    repeats: int

    def rounds(self, part: int, of: int) -> int:
        """A part of the rounds, at least one: `rounds(2, of=3)` are two thirds of them."""
        return max(1, self.repeats * part // of)

    def repository(self) -> Path:
        """The pair's repository with random weights, made if it is not there; `student/` in it is the plain student."""
        return repository(self.pair, self.data / self.name)


@dataclass(frozen=True)
class Figure:
    """One number, as a row of a table.

    Args:
        name: What it is: `"first answer"`.
        value: Median and quartiles.
        unit: `"x"` for a ratio, or `"ms"`, `"MB"` (10^6 bytes), `"requests"`.
        base: What a ratio is to: `"transformers' teacher"`.
    """

    name: str
    value: Spread
    unit: str = "x"
    base: str | None = None

    @classmethod
    def of(cls, name: str, values: Sequence[float], unit: str, base: str | None = None) -> Self:
        """The median and quartiles of values, one for each round."""
        return cls(name, Spread.of(values), unit, base)

    @classmethod
    def ratio(cls, name: str, own: Sequence[float], whole: Sequence[float], base: str) -> Self:
        """Values as parts of others, round by round.

        Args:
            name: What it is.
            own: One value for each round.
            whole: What each is a part of.
            base: What that is called.
        """
        return cls(name, Spread.of([a / b for a, b in zip(own, whole, strict=True)]), base=base)


@dataclass(frozen=True)
class Measured:
    """What a measure found.

    Args:
        figures: In the order of the table.
        series: By name, what plots are drawn from; plain JSON.
    """

    figures: Sequence[Figure]
    series: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As the store keeps it."""
        return {"figures": [asdict(figure) for figure in self.figures], "series": dict(self.series)}


class Measure(Protocol):
    """A measure."""

    def __call__(self, place: Place) -> Measured:
        """Measure a pair."""


def ratios(times: Mapping[str, Sequence[float]], base: str, named: str | None = None) -> list[Figure]:
    """Each thing's times as a part of the base's, round by round.

    Args:
        times: By name, one for each round, of things that took turns.
        base: The name of what the others are held against.
        named: What the base is called in tables, if not by its name.
    """
    return [Figure.ratio(name, own, times[base], named or base) for name, own in times.items() if name != base]
