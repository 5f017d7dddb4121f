"""The order of the least area under a loss, against all orders there are."""

from __future__ import annotations

import random
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwl_hf.evaluation.search import StageBytes, all_masks, best_schedule, search_for, swaps
from pwl_hf.modeling.repository.manifest import FileEntry, Manifest, converter_file, statistics_file, teacher_shard
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.modeling.sources import Sources


def listing(num_blocks: int, draw: random.Random, *, plain: bool = False) -> Manifest:
    """A manifest of any sizes: shards, converters, statistics of some masks, a tensor that two blocks share."""

    def entry(path: str, most: int, blocks: tuple[int, ...] = ()) -> FileEntry:
        return FileEntry(path, draw.randint(1, most), f"{draw.getrandbits(256):064x}", 1, blocks)

    blocks, boundaries = range(1, num_blocks + 1), range(1, num_blocks)
    files = [entry("model.safetensors", 1000), *(entry(teacher_shard(b, num_blocks), 1000) for b in blocks)]
    files += [entry(converter_file(way, i), 1 if plain else 400) for way in ("encoder", "decoder") for i in boundaries]
    if not plain:
        masks = [mask for mask in Sources.all(num_blocks) if mask.is_mixed and draw.random() < 0.5]
        files += [entry(statistics_file(mask), 200) for mask in masks]
        files += [entry("teacher/shared-embedding.safetensors", 500, (1, num_blocks))] if num_blocks > 1 else []
    return Manifest.build("float32", Schedule.prefixes(num_blocks), files)


def order(blocks: tuple[int, ...]) -> list[str]:
    """The masks of an order of blocks, from 0."""
    return ["".join("T" if b in blocks[:k] else "S" for b in range(len(blocks))) for k in range(len(blocks) + 1)]


def in_fewer_steps(masks: list[str]) -> list[list[str]]:
    """Some of the stages: several blocks at once."""
    return [[*masks[::2], *masks[-1:][: len(masks) % 2 == 0]], [masks[0], masks[-1]]]


def measure_of(losses, asked):
    def measure(masks):
        assert not {*masks} & asked, "measured twice"
        asked.update(masks)
        return {mask: losses[mask] for mask in masks}

    return measure


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32).map(random.Random))
def test_bytes_are_those_that_the_manifest_says_of_any_schedule(num_blocks, draw):
    manifest = listing(num_blocks, draw)
    for blocks in permutations(range(num_blocks)):
        for masks in [order(blocks), *in_fewer_steps(order(blocks))]:
            stages = manifest.with_schedule(Schedule.of(masks)).stages
            sizes = [sum(entry.bytes for entry in stage.files) for stage in stages]
            found = StageBytes(manifest).totals(masks)
            assert list(found) == [sum(sizes[: k + 1]) for k in range(len(sizes))]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32).map(random.Random))
def test_no_order_of_all_is_better_than_the_one_that_is_found(num_blocks, draw):
    stage_bytes = StageBytes(listing(num_blocks, draw))
    losses = {mask: draw.random() for mask in all_masks(num_blocks)}
    costs = {blocks: stage_bytes.cost(order(blocks), losses) for blocks in permutations(range(num_blocks))}
    asked: set[str] = set()
    found = best_schedule(measure_of(losses, asked), stage_bytes, Schedule.prefixes(num_blocks), "all")
    assert asked == {*all_masks(num_blocks)}
    assert stage_bytes.cost(found, losses) == pytest.approx(min(costs.values()))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(0, 2**32).map(random.Random))
def test_swaps_end_no_worse_than_they_begin_and_where_no_exchange_is_better(num_blocks, draw):
    stage_bytes = StageBytes(listing(num_blocks, draw))
    losses = {mask: draw.random() for mask in all_masks(num_blocks)}
    present = Schedule.of(order(tuple(draw.sample(range(num_blocks), num_blocks))))
    asked: set[str] = set()
    found = best_schedule(measure_of(losses, asked), stage_bytes, present, "swaps")
    cost = stage_bytes.cost(found, losses)
    for start in (Schedule.prefixes(num_blocks), present):
        assert cost <= stage_bytes.cost([mask.mask for mask in start], losses)
    blocks = [next(b for b in range(num_blocks) if one[b] != two[b]) for one, two in pairwise(found)]
    for k in range(num_blocks - 1):
        exchanged = [*blocks[:k], blocks[k + 1], blocks[k], *blocks[k + 2 :]]
        assert stage_bytes.cost(order(tuple(exchanged)), losses) >= cost


def test_swaps_measure_few_masks():
    num_blocks, asked = 12, set()
    stage_bytes = StageBytes(listing(num_blocks, random.Random(0), plain=True))
    # One pair the other way round: the only mask that is better than those of the stages.
    losses = {mask: mask.count("S") / num_blocks for mask in all_masks(num_blocks)}
    losses[wanted := "TTTTSTSSSSSS"] -= 0.5
    found = best_schedule(measure_of(losses, asked), stage_bytes, Schedule.prefixes(num_blocks), "swaps")
    assert wanted in found
    assert len(asked) < 4 * num_blocks


def test_a_schedule_of_fewer_stages_stays_if_it_is_better():
    stage_bytes = StageBytes(listing(3, random.Random(1), plain=True))
    # Whatever comes between is worse than the student, or better.
    worse = {mask: {0: 0.2, 3: 0.0}.get(mask.count("T"), 1.0) for mask in all_masks(3)}
    better = dict.fromkeys(all_masks(3), 0.0) | {"SSS": 1.0}
    at_once = Schedule.of(["SSS", "TTT"])
    for search in ("all", "swaps"):
        assert best_schedule(measure_of(worse, set()), stage_bytes, at_once, search) == ["SSS", "TTT"]
        assert len(best_schedule(measure_of(better, set()), stage_bytes, at_once, search)) == 4


def test_where_all_are_alike_the_present_schedule_stays():
    stage_bytes, losses = StageBytes(listing(4, random.Random(2), plain=True)), dict.fromkeys(all_masks(4), 0.0)
    present = Schedule.of(order((3, 1, 0, 2)))
    for search in ("all", "swaps"):
        found = best_schedule(measure_of(losses, set()), stage_bytes, present, search)
        assert found == [mask.mask for mask in present]


def test_swaps_of_one_block_or_none_between_are_the_start():
    stage_bytes = StageBytes(listing(1, random.Random(3), plain=True))
    assert swaps(measure_of({}, set()), {"S": 1.0, "T": 0.0}, stage_bytes, ["S", "T"]) == ["S", "T"]


def test_other_searches_are_refused_and_all_is_for_few_blocks():
    stage_bytes = StageBytes(listing(2, random.Random(4)))
    with pytest.raises(ValueError, match="search must be one of all, swaps, got 'greedy'"):
        best_schedule(measure_of({}, set()), stage_bytes, Schedule.prefixes(2), "greedy")
    assert [search_for(n) for n in (2, 6, 7, 40)] == ["all", "all", "swaps", "swaps"]
