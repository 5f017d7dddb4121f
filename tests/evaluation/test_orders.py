"""Orders of masks."""

from __future__ import annotations

import pytest

from pwl_hf.evaluation import masks_of


def test_orders_of_four_blocks_are_those_of_the_published_tables():
    assert masks_of("prefix", 4) == ["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"]
    assert masks_of("suffix", 4) == ["SSSS", "SSST", "SSTT", "STTT", "TTTT"]
    assert masks_of("contiguous", 4) == ["SSSS", "STSS", "SSTS", "STTS", "TTTT"]


def test_contiguous_masks_have_one_run_that_touches_neither_end():
    found = masks_of("contiguous", 6)[1:-1]
    assert len(found) == len(set(found)) == 4 + 3 + 2 + 1
    assert all(mask.strip("S").strip("T") == "" and mask[0] == mask[-1] == "S" for mask in found)


@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_all_holds_every_mask_of_the_other_orders(num_stages):
    found = masks_of("all", num_stages)
    assert len(set(found)) == len(found) == 2**num_stages
    for order in ("prefix", "suffix", "contiguous"):
        masks = masks_of(order, num_stages)
        assert set(masks) <= set(found)
        assert (masks[0], masks[-1]) == ("S" * num_stages, "T" * num_stages)


def test_unknown_order_raises_with_those_there_are():
    with pytest.raises(ValueError, match="prefix, suffix, contiguous, all, got 'random'"):
        masks_of("random", 4)
