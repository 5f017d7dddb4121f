"""Intervals: those of the literature, and as wide as they should be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from pwl_hf.evaluation.intervals import paired, wilson


@pytest.mark.parametrize(
    ("correct", "total"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 12), (511, 719), (9_000, 10_000)]
)
def test_wilson_is_that_of_scipy(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_stays_within_0_and_1():
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1
    assert wilson(0, 10).high > 0.2


def test_paired_is_the_formula_by_hand():
    # 10 gained and 2 lost of 98: (11 - 3) / 100 ± 1.96 sqrt((0.14 - 0.0064) / 100)
    low, high = paired(10, 2, 98)
    assert low == pytest.approx(0.08 - 1.959964 * 0.0365513, abs=1e-6)
    assert high == pytest.approx(0.08 + 1.959964 * 0.0365513, abs=1e-6)


def test_paired_turns_round_with_its_sides():
    low, high = paired(30, 5, 200)
    assert paired(5, 30, 200) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.02), (0.1, 0.02), (0.005, 0.03), (0.3, 0.25)])
def test_paired_covers_the_true_difference_95_times_in_100(gained, lost):
    draws = np.random.RandomState(0).multinomial(500, [gained, lost, 1 - gained - lost], size=2000)
    found = [paired(int(g), int(lo), 500) for g, lo, _ in draws]
    covered = np.mean([low <= gained - lost <= high for low, high in found])
    assert 0.93 < covered < 0.98


def test_paired_is_narrower_than_over_different_images():
    # 90 % and 89 % of 1000 with 30 images decided otherwise; independent samples would give 2 * 1.96 * sqrt(2 p q / n).
    low, high = paired(20, 10, 1000)
    assert high - low < 0.5 * 2 * 1.96 * (2 * 0.9 * 0.1 / 1000) ** 0.5
