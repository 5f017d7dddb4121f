"""The distributions that masks are drawn from."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwl_hf.modeling import Sources
from pwl_hf.training.objective.masks import distribution, draw_masks, mixed_masks, prefix_masks, suffix_masks
from pwl_hf.training.objective.objective_arguments import MASK_DISTRIBUTIONS


def test_groups_of_four_blocks():
    assert prefix_masks(4) == ["TSSS", "TTSS", "TTTS"]
    assert suffix_masks(4) == ["SSST", "SSTT", "STTT"]
    assert len(mixed_masks(4)) == 14


@pytest.mark.parametrize("name", MASK_DISTRIBUTIONS)
@pytest.mark.parametrize("num_stages", range(1, 7))
def test_every_distribution_covers_what_it_says(name, num_stages):
    mixed, prefixes = set(mixed_masks(num_stages)), set(prefix_masks(num_stages))
    expected = mixed if name == "method" else mixed - prefixes
    assert {mask for group in distribution(name, num_stages) for mask in group} == expected


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match="must be one of suffix-scattered, uniform, method, got 'all'"):
        distribution("all", 4)


def test_groups_are_drawn_alike_and_so_are_their_masks():
    counts = Counter(draw_masks(distribution("method", 4), 1, seed=0, step=step)[0] for step in range(14_000))
    # Half over six stages and suffixes, half over fourteen mixed masks: 7000/6 + 500 and 500.
    for mask in mixed_masks(4):
        end = mask in prefix_masks(4) + suffix_masks(4)
        assert abs(counts[mask] - (7000 / 6 + 500 if end else 500)) < 150, mask


@given(
    st.sampled_from(MASK_DISTRIBUTIONS),
    st.integers(1, 6),
    st.integers(1, 70),
    st.integers(0, 2**40),
    st.integers(0, 10**7),
)
def test_draws_are_of_the_distribution_distinct_and_repeatable(name, num_stages, count, seed, step):
    groups = distribution(name, num_stages)
    drawn = draw_masks(groups, count, seed, step)
    assert drawn == draw_masks(groups, count, seed, step)
    assert len(drawn) == len(set(drawn)) == min(count, len({mask for group in groups for mask in group}))
    assert {mask for group in groups for mask in group}.issuperset(drawn)
    assert all(Sources(mask).is_mixed for mask in drawn)


def test_steps_and_seeds_draw_differently():
    groups = distribution("uniform", 4)
    assert len({tuple(draw_masks(groups, 4, 0, step)) for step in range(50)}) > 25
    assert draw_masks(groups, 4, 0, 0) != draw_masks(groups, 4, 1, 0)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("suffix-scattered", ["TTST TSTT STTS TSTS", "TSTS SSST SSTT STSS"]),
        ("uniform", ["TSST STTT TSTT SSTT", "TSTT SSST STST TSST"]),
        ("method", ["TSSS TTTS STTT TTSS", "TSTS TTSS TTTS SSST"]),
    ],
)
def test_draws_of_a_seed_stay_what_they_were(name, drawn):
    # Also those of runs that an earlier version began: the order of masks within a distribution matters.
    groups = distribution(name, 4)
    assert [" ".join(draw_masks(groups, 4, seed, step)) for seed, step in ((0, 0), (1, 12345))] == drawn
