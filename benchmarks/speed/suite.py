"""All measures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.speed.figures import Measure

# Draws a measure's series to a file.
Plot = Callable[[Mapping[str, Any], Path], None]


@dataclass(frozen=True)
class Entry:
    """A measure of the suite.

    Args:
        title: Its heading.
        about: What its figures are, in a sentence or two.
        where: `module:function`, below `benchmarks.speed.measures`; imported when it is run.
        pairs: The pairs that it is measured on by default; none for those that the whole suite is run with.
        plot: `module:function` below `benchmarks.speed.plots`, which draws its series; None for no plot.
    """

    title: str
    about: str
    where: str
    pairs: Sequence[str] = ()
    plot: str | None = None

    def load(self) -> Measure:
        """The measure itself."""
        found: Measure = _named("measures", self.where)
        return found

    def load_plot(self) -> Plot | None:
        """What draws it, if anything does."""
        return None if self.plot is None else _named("plots", self.plot)


def _named(folder: str, where: str) -> Any:
    module, name = where.split(":")
    return getattr(import_module(f"benchmarks.speed.{folder}.{module}"), name)


SUITE: dict[str, Entry] = {
    "loading-warm": Entry(
        "From local files, warm",
        "Time to load and answer one image, imports apart, one thread; files in the page cache, "
        "shards verified before.",
        "loading:warm",
    ),
    "loading-cold": Entry(
        "From local files, cold",
        "The same, the files dropped from the page cache before each.",
        "loading:cold",
    ),
    "memory": Entry(
        "Memory on the whole way",
        "The most memory above that of the imports, while requests are answered and all stages stream in from local files "
        "that were not verified before. Each in a fresh process; pages of mapped files count as soon as they are read.",
        "memory:peak",
    ),
    "step-down": Entry(
        "Down to the student and back",
        "Time of `set_stage` and one answer, files verified; and the memory that comes back.",
        "memory:step_down",
    ),
}
