"""Confidence intervals of counts, at 95 % (pure Python).

Intervals speak of other images of the same kind: they say nothing of another training run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Interval(NamedTuple):
    """From `low` to `high`."""

    low: float
    high: float


def wilson(correct: int, total: int) -> Interval:
    """The score interval of a proportion, within 0 and 1 also where nothing or everything is right.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927):
    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n).

    Args:
        correct: How many of `total` are right.
        total: n, at least 1.
    """
    p, z2 = correct / total, _Z**2
    centre = p + z2 / (2 * total)
    half = _Z * sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    scale = 1 + z2 / total
    # Exact at the ends, where rounding would leave 0 and 1 outside.
    return Interval(
        (centre - half) / scale if correct else 0.0,
        (centre + half) / scale if correct < total else 1.0,
    )


def paired(gained: int, lost: int, total: int) -> Interval:
    """The interval of a difference of two proportions over the same images, far narrower than over different ones.

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data", J. Educ. Behav. Stat. 37 (2012): with g = (gained + 1) / (n + 2) and
    l = (lost + 1) / (n + 2), it is g - l ± z sqrt((g + l - (g - l)²) / (n + 2)).

    Args:
        gained: Images that are right, and wrong in the reference.
        lost: Images that are wrong, and right in the reference.
        total: n, all images.
    """
    g, lo = (gained + 1) / (total + 2), (lost + 1) / (total + 2)
    half = _Z * sqrt((g + lo - (g - lo) ** 2) / (total + 2))
    return Interval(max(-1.0, g - lo - half), min(1.0, g - lo + half))


def of_mean(values: Sequence[float]) -> Interval:
    """The interval of a mean of many values, one an image, by the normal distribution: mean ± z s / sqrt(n).

    Args:
        values: At least two.
    """
    mean, half = fmean(values), _Z * stdev(values) / sqrt(len(values))
    return Interval(mean - half, mean + half)
