"""Which paths are trained, and how often."""

from __future__ import annotations

from collections import Counter

import pytest

from pwl_hf.modeling import Sources
from pwl_hf.training.masks import prefix_masks, sample_mask, scattered_masks, suffix_masks


def test_three_groups_are_all_mixed_masks():
    assert prefix_masks(4) == ["TSSS", "TTSS", "TTTS"]
    assert suffix_masks(4) == ["SSST", "SSTT", "STTT"]
    together = prefix_masks(4) + suffix_masks(4) + scattered_masks(4)
    assert sorted(together) == sorted(s.mask for s in Sources.all(4) if s.is_mixed)


def test_half_of_the_draws_are_suffixes_the_others_are_even():
    steps = 8000
    drawn = Counter(sample_mask(4, 0, step) for step in range(steps))
    assert set(drawn) == {*suffix_masks(4), *scattered_masks(4)}
    for group in (suffix_masks(4), scattered_masks(4)):
        for mask in group:
            expected = steps / 2 / len(group)
            # Five standard deviations.
            assert abs(drawn[mask] - expected) < 5 * expected**0.5


def test_mask_depends_on_seed_and_step_alone():
    draws = [sample_mask(4, 3, step) for step in range(50)]
    assert draws == [sample_mask(4, 3, step) for step in range(50)]
    assert draws != [sample_mask(4, 4, step) for step in range(50)]


@pytest.mark.parametrize(("num_stages", "masks"), [(1, {None}), (2, {"ST"}), (3, {"SST", "STT", "STS", "TST"})])
def test_few_blocks_have_few_other_paths(num_stages, masks):
    assert {sample_mask(num_stages, 0, step) for step in range(100)} == masks
