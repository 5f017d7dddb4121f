"""The input and output of a measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from benchmarks.speed.pairs import Pair, repository, with_graphs, with_tier
from benchmarks.speed.timing import Spread

# Rows of several measures.
TEACHER_ROW, STUDENT_ROW = "transformers' teacher", "transformers' student"
FIRST_ROW, WHOLE_ROW = "first answer", "all stages, one answer at the end"


@dataclass(frozen=True)
class Place:
    """What is measured, and where.

    Args:
        name: The pair's name.
        pair: The pair.
        data: The folder in which repositories are made and kept.
        repeats: Rounds that count.
    """

    name: str
    pair: Pair
    data: Path
    repeats: int

    def rounds(self, part: int, of: int) -> int:
        """A part of the rounds, at least one: `rounds(2, of=3)` is two thirds."""
        return max(1, self.repeats * part // of)

    def repository(self) -> Path:
        """The pair's repository with random weights, made if it is not there; `student/` in it is the plain student."""
        return repository(self.pair, self.data / self.name)

    def with_tier(self) -> Path:
        """The same repository with the teacher in low precision too."""
        return with_tier(self.repository())

    def exported(self) -> Path:
        """The same repository with the ONNX graphs of its stages, which it gets if it has none."""
        return with_graphs(self.repository())


@dataclass(frozen=True)
class Figure:
    """One number, as a row of a table.

    Args:
        name: What it is: `"first answer"`.
        value: Median and quartiles.
        unit: `"x"` for a ratio, or `"ms"`, `"MB"` (10^6 bytes), `"requests"`.
        base: What a ratio is relative to: `"transformers' teacher"`.
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
        """Values divided by others, round by round.

        Args:
            name: What it is.
            own: One value for each round.
            whole: What each is divided by.
            base: Its name.
        """
        return cls(name, Spread.of([a / b for a, b in zip(own, whole, strict=True)]), base=base)


@dataclass(frozen=True)
class Measured:
    """The result of a measure.

    Args:
        figures: The rows, in order.
        series: Data for plots by name; plain JSON.
    """

    figures: Sequence[Figure]
    series: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The entry of the store."""
        return {"figures": [asdict(figure) for figure in self.figures], "series": dict(self.series)}


class Measure(Protocol):
    """A measure."""

    def __call__(self, place: Place) -> Measured:
        """Measure a pair."""


def ratios(times: Mapping[str, Sequence[float]], base: str, named: str | None = None) -> list[Figure]:
    """Times relative to those of the base, round by round.

    Args:
        times: By name, one for each round, of things that took turns.
        base: The name of the base.
        named: What tables call the base, if not by its name.
    """
    return [Figure.ratio(name, own, times[base], named or base) for name, own in times.items() if name != base]
