"""The best order of blocks in stored accuracies."""

from __future__ import annotations

import pytest

from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.results import Results
from benchmarks.recipes.schedules import schedules_section, sizes_of
from benchmarks.recipes.tables import render
from pwl_hf.evaluation import masks_of
from pwl_hf.evaluation.search import StageBytes
from pwl_hf.modeling.repository.manifest import FileEntry, Manifest, converter_file, teacher_shard
from pwl_hf.modeling.schedule import Schedule

MASKS = masks_of("all", 3)


def sizes(*_: object) -> StageBytes:
    """A student and three blocks of 100 bytes, converters of 1."""
    paths = {"model.safetensors": 100, **{teacher_shard(block, 3): 100 for block in (1, 2, 3)}}
    paths |= {converter_file(way, i): 1 for way in ("encoder", "decoder") for i in (1, 2)}
    entries = [FileEntry(path, size, f"{i:064x}", 1) for i, (path, size) in enumerate(paths.items())]
    return StageBytes(Manifest.build("float32", Schedule.prefixes(3), entries))


def section(definitions, by_seed):
    entries = {seed: {"accuracy": found} for seed, found in by_seed.items()}
    results = Results(3, (0, 1, 2), {"paper": {}, "ours": entries})
    text = schedules_section(definitions, definitions.tables["orders"].sections[0], results, sizes)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def by_count(**others: float) -> dict[str, float]:
    """Each teacher block is worth ten points, but for some masks."""
    return {mask: 0.5 + 0.1 * mask.count("T") for mask in MASKS} | others


def test_first_to_last_stays_where_nothing_is_better(definitions):
    _, _, paper, ours = section(definitions, {seed: by_count() for seed in range(3)})
    assert paper == ["paper", *["–"] * 7]
    # 0.5, 0.6 and 0.7 for 100 bytes each; with a converter more, 101 and 101: of 402.
    area = 100 * (0.5 * 101 + 0.6 * 101 + 0.7 * 100) / 402
    assert ours == [
        "ours",
        f"{area:.1f} ± 0.0",
        f"{area:.1f} ± 0.0",
        "first to last",
        "",
        "+0.00 / +0.00 / +0.00",
        "+0.00",
        "+0.00",
    ]


def test_another_order_is_judged_on_the_seed_that_had_no_part_in_it(definitions):
    # Seeds 0 and 1 are better from last to first, seed 2 the other way round.
    last, first = by_count(SST=0.9, STT=0.9), by_count(TSS=0.9, TTS=0.9)
    *_, ours = section(definitions, {0: last, 1: last, 2: first})
    assert ours[3] == "3 2 1"
    assert ours[4].startswith("50.0 / 80.0 / 83.3 / 80.0, against 50.0 / 70.0 / 76.7 / 80.0")
    gains = [float(gain) for gain in ours[5].split(" / ")]
    # What two others choose: of seeds 0 and 1 each has one for it and one against.
    assert gains[2] == pytest.approx(100 * ((0.6 - 0.9) * 101 + (0.7 - 0.9) * 100) / 402, abs=0.01)


def test_one_who_takes_block_after_block_may_end_far_below(definitions):
    # The last block first is a little better, and leads to nothing.
    trap = by_count(SST=0.61, STT=0.1, TST=0.1)
    *_, ours = section(definitions, {0: trap})
    assert (ours[3], ours[5], ours[6]) == ("first to last", "–", "+0.00")
    assert float(ours[7]) < -10


def test_runs_without_all_masks_say_nothing(definitions):
    *_, ours = section(definitions, {0: dict.fromkeys(masks_of("prefix", 3), 0.5)})
    assert ours[1:] == ["–"] * 7


def test_sizes_are_those_of_the_pair_s_networks():
    definitions = load_definitions()
    totals = {}
    for name in ("resnet", "resnet-half"):
        totals[name] = sizes_of(definitions, definitions.pairs[name]).totals(masks_of("prefix", 4))
    # Of 328,528 bytes on disk, as `pwl-hf info` says of this pair's models.
    assert totals["resnet-half"][0] == pytest.approx(328_528, rel=0.01)
    assert totals["resnet"][0] > 3 * totals["resnet-half"][0]
    shards = [after - before for before, after in zip(totals["resnet"], totals["resnet"][1:], strict=False)]
    assert shards == sorted(shards)


def test_table_is_made_of_every_section():
    definitions = load_definitions()
    text = render(definitions, definitions.tables["order"], {}, {}, [0], "made so")
    assert text.count("| recipe |") == len(definitions.tables["order"].sections)
