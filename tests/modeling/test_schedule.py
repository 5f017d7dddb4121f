"""Schedules: which masks lead from the student to the teacher, and which stage a mask is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwl_hf.modeling.schedule import Schedule
from pwl_hf.modeling.sources import Sources


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Blocks in any order, one or several a stage."""
    order = draw(st.permutations(range(draw(st.integers(1, 6)))))
    ends = sorted(draw(st.sets(st.integers(1, len(order)))) | {len(order)})
    taken = [set(order[:end]) for end in (0, *ends)]
    return Schedule.of("".join("T" if i in blocks else "S" for i in range(len(order))) for blocks in taken)


@given(schedules())
def test_each_mask_is_the_stage_at_its_place(schedule: Schedule) -> None:
    assert [schedule.stage_of(mask) for mask in schedule] == list(range(schedule.num_stages + 1))
    assert [schedule.mask(stage) for stage in range(schedule.num_stages + 1)] == list(schedule)
    assert schedule.mask("teacher").mask == "T" * schedule.num_blocks
    others = set(Sources.all(schedule.num_blocks)) - set(schedule)
    assert {schedule.stage_of(mask) for mask in others} <= {None}


@given(st.integers(1, 9))
def test_prefixes_take_a_block_more_at_each_stage(num_blocks: int) -> None:
    schedule = Schedule.prefixes(num_blocks)
    assert schedule.is_prefixes
    assert (schedule.num_blocks, schedule.num_stages, len(schedule)) == (num_blocks, num_blocks, num_blocks + 1)
    for stage, mask in enumerate(schedule):
        assert mask.blocks("teacher") == tuple(range(1, stage + 1))


@given(schedules())
def test_only_prefixes_are_prefixes(schedule: Schedule) -> None:
    assert schedule.is_prefixes == (schedule == Schedule.prefixes(schedule.num_blocks))


@pytest.mark.parametrize("stage", [-1, 5, True, 2.0, "2", None])
def test_a_stage_that_does_not_exist_is_refused(stage: object) -> None:
    with pytest.raises(ValueError, match="whole number from 0 to 4"):
        Schedule.prefixes(4).mask(stage)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (["SS"], "leads from the student to the teacher, got 1 mask(s)"),
        (["SS", "TTT"], "must be of one length, got SS, TTT"),
        (["TS", "TT"], "got TS first and TT last"),
        (["SS", "TS"], "got SS first and TS last"),
        (["SSS", "TSS", "STT", "TTT"], "STT comes after TSS"),
        (["SS", "SS", "TT"], "SS comes after SS"),
        (["SS", "XX"], "invalid sources mask 'XX'"),
    ],
)
def test_what_is_no_way_to_the_teacher_is_refused(masks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Schedule.of(masks)
