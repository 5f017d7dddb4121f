"""Cut points, as pure arithmetic."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwl_hf.modeling.routes.cuts import check_cuts, default_cuts, units_of_block

depths_strategy = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("depths", "num_stages", "expected"),
    [
        ([12], 4, [3, 6, 9, 12]),
        ([12], 1, [12]),
        ([6], 4, [2, 3, 5, 6]),
        ([3, 4, 6, 3], 4, [3, 7, 13, 16]),
        ([2, 2, 2, 2], 2, [4, 8]),
        ([2, 2, 6, 2], 8, [1, 2, 3, 4, 7, 10, 11, 12]),
        ([2, 2, 3, 3, 3], 5, [2, 4, 7, 10, 13]),
        ([1, 1, 1, 1], 3, [1, 3, 4]),
    ],
)
def test_default_cuts_are_of_equal_depth(depths: list[int], num_stages: int, expected: list[int]) -> None:
    assert default_cuts(depths, num_stages) == expected


@given(depths_strategy, st.integers(1, 12))
def test_default_cuts_pass_their_own_check_or_are_refused(depths: list[int], num_stages: int) -> None:
    try:
        cuts = default_cuts(depths, num_stages)
    except ValueError as error:
        assert f"cannot be cut into {num_stages} blocks" in str(error)  # noqa: PT017
        assert num_stages > min(len(depths), sum(depths)) or num_stages > len(depths)
        return
    check_cuts("cuts", cuts, sum(depths), num_stages)


@given(depths_strategy, st.data())
def test_up_to_the_number_of_levels_blocks_end_where_levels_end(depths: list[int], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(depths)))
    assert set(default_cuts(depths, num_stages)) <= set(accumulate(depths))


@given(st.integers(1, 40), st.data())
def test_a_plain_transformer_can_be_cut_into_any_number_of_blocks_up_to_its_depth(
    depth: int, data: st.DataObject
) -> None:
    num_stages = data.draw(st.integers(1, depth))
    cuts = default_cuts([depth], num_stages)
    sizes = [after - before for before, after in pairwise([0, *cuts])]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=5), st.data())
def test_networks_of_the_same_levels_are_cut_at_the_same_resolutions(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    num_stages = data.draw(st.integers(1, len(pairs)))
    levels = []
    for depths in zip(*pairs, strict=True):
        ends = list(accumulate(depths))
        levels.append([ends.index(cut) for cut in default_cuts(depths, num_stages)])
    assert levels[0] == levels[1]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_the_units_of_all_blocks_are_all_units_once_and_in_order(sizes: list[int]) -> None:
    cuts = list(accumulate(sizes))
    check_cuts("cuts", cuts, sum(sizes), len(sizes))
    units = [unit for block in range(1, len(cuts) + 1) for unit in units_of_block(cuts, block)]
    assert units == list(range(sum(sizes)))
    assert [len(units_of_block(cuts, block)) for block in range(1, len(cuts) + 1)] == sizes


@given(st.lists(st.integers(-2, 12), max_size=5), st.integers(1, 5), st.integers(1, 10))
def test_check_cuts_accepts_exactly_what_divides_the_network(cuts: list[int], num_stages: int, depth: int) -> None:
    good = len(cuts) == num_stages and cuts[0] > 0 and cuts == sorted(set(cuts)) and cuts[-1] == depth
    if good:
        check_cuts("teacher_cuts", cuts, depth, num_stages)
    else:
        with pytest.raises(ValueError, match="teacher_cuts must"):
            check_cuts("teacher_cuts", cuts, depth, num_stages)


@pytest.mark.parametrize(
    ("cuts", "reason"),
    [
        ([2, 4.0], "whole numbers"),
        ([True, 4], "whole numbers"),
        (["2", 4], "whole numbers"),
        ([4], "one cut a block, 2 in all"),
        ([], "one cut a block, 2 in all"),
        ([0, 4], "positive and increasing"),
        ([4, 4], "positive and increasing"),
        ([2, 3], "cover every unit: the last cut must be 4"),
        ([2, 5], "cover every unit: the last cut must be 4"),
    ],
)
def test_check_cuts_says_what_is_wrong(cuts: list, reason: str) -> None:
    with pytest.raises(ValueError, match=f"student_cuts must.*{reason}"):
        check_cuts("student_cuts", cuts, 4, 2)
