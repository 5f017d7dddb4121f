"""Masks over {S, T}^N, as pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwl_hf import Sources
from pwl_hf.modeling.sources import PartId

masks = st.text("ST", min_size=1, max_size=9)


@given(masks)
def test_a_mask_keeps_its_letters(mask: str) -> None:
    sources = Sources(mask)
    assert str(sources) == mask
    assert len(sources) == len(mask)
    assert Sources.of(mask, len(mask)) == Sources.of(sources, len(mask)) == sources


@given(masks)
def test_every_block_comes_from_one_network(mask: str) -> None:
    sources = Sources(mask)
    assert sorted(sources.blocks("teacher") + sources.blocks("student")) == list(range(1, len(mask) + 1))
    assert sources.is_mixed == ("S" in mask and "T" in mask)


@given(masks)
def test_a_converter_stands_exactly_where_the_source_changes(mask: str) -> None:
    changes = dict(Sources(mask).changes)
    for i in range(1, len(mask)):
        expected = {"TS": "encoder", "ST": "decoder"}.get(mask[i - 1 : i + 1])
        assert changes.get(i) == expected


@given(masks)
def test_the_parts_are_the_blocks_and_the_converters(mask: str) -> None:
    sources = Sources(mask)
    assert len(sources.part_ids) == len(mask) + len(sources.changes)
    assert {p.number for p in sources.part_ids if p.kind in ("teacher", "student")} == set(range(1, len(mask) + 1))
    assert ("teacher" in {p.kind for p in sources.part_ids}) == ("T" in mask)


@given(masks)
def test_converted_blocks_are_those_behind_the_first_change(mask: str) -> None:
    sources = Sources(mask)
    same = len(mask) - len(mask.lstrip(mask[0]))
    assert sources.converted_blocks == tuple(range(same + 1, len(mask) + 1))


@given(st.integers(1, 6))
def test_all_masks_are_there_once_from_student_to_teacher(num_stages: int) -> None:
    found = Sources.all(num_stages)
    assert len(set(found)) == len(found) == 2**num_stages
    assert (str(found[0]), str(found[-1])) == ("S" * num_stages, "T" * num_stages)


@given(st.one_of(st.text(max_size=6), st.integers(), st.none(), st.binary(max_size=3)))
def test_anything_else_is_refused_with_an_example(value: object) -> None:
    if isinstance(value, str) and value and not set(value) - set("SQT"):
        Sources(value)
        return
    with pytest.raises(ValueError, match=r"invalid sources mask .*such as 'TTSS'"):
        Sources(value)


@given(masks, st.integers(1, 9))
def test_a_mask_of_another_length_is_refused_with_both(mask: str, num_stages: int) -> None:
    if len(mask) == num_stages:
        assert Sources.of(mask, num_stages)
        return
    with pytest.raises(ValueError, match=f"{len(mask)} letters, but the model has {num_stages} blocks"):
        Sources.of(mask, num_stages)


def test_a_mask_is_a_value() -> None:
    assert Sources("TS") == Sources("TS") != Sources("ST")
    assert len({Sources("TS"), Sources("TS"), Sources("ST")}) == 2
    with pytest.raises(AttributeError):
        Sources("TS").mask = "SS"


def test_parts_name_themselves() -> None:
    assert str(PartId("teacher", 3)) == "teacher block 3"
    assert str(PartId("encoder", 2)) == "encoder 2"
