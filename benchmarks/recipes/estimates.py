"""Means and spreads over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Estimate:
    """A quantity over seeds.

    Args:
        mean: The mean.
        spread: The standard deviation of a sample; NaN for one seed.
        count: The number of seeds.
    """

    mean: float
    spread: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """The estimate of values, one a seed; None for none."""
        if not values:
            return None
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), spread, len(values))

    def percent(self, *, of: int, sign: bool = False) -> str:
        """A fraction in percent, such as `67.7 ± 0.4`, with the number of seeds if there are fewer than `of`."""
        text = f"{100 * self.mean:{'+' if sign else ''}.1f}"
        if not math.isnan(self.spread):
            text += f" ± {100 * self.spread:.1f}"
        return text if self.count >= of else f"{text} ({self.count} of {of} seeds)"


Accuracies = Mapping[int, Mapping[str, float]]
"""The accuracy of each mask by seed: what the runs of a recipe on a pair have measured."""


def accuracy(runs: Accuracies, mask: str) -> Estimate | None:
    """The accuracy of a mask over the seeds that have it."""
    return Estimate.of([found[mask] for _, found in sorted(runs.items()) if mask in found])


def difference(runs: Accuracies, mask: str, others: Accuracies, other_mask: str) -> Estimate | None:
    """How far a mask is above another one, seed by seed: the spread is that of the differences.

    Over the seeds that both have.
    """
    seeds = [seed for seed in sorted(runs) if mask in runs[seed] and other_mask in others.get(seed, {})]
    return Estimate.of([runs[seed][mask] - others[seed][other_mask] for seed in seeds])


def beyond_spread(estimate: Estimate) -> bool:
    """Whether a difference is below zero by more than its standard deviation over seeds (one seed: below zero)."""
    return estimate.mean < -(0.0 if math.isnan(estimate.spread) else estimate.spread)
