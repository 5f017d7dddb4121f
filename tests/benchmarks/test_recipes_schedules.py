"""The best order of blocks in stored accuracies."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.recipes.choosing import Model, read_model, render_choices
from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.results import Results
from benchmarks.recipes.schedules import schedules_section, sizes_of
from benchmarks.recipes.tables import render
from pwl_hf.data import DataSource
from pwl_hf.evaluation import evaluate_repository, masks_of
from pwl_hf.evaluation.running import Answers
from pwl_hf.evaluation.search import StageBytes
from pwl_hf.modeling.repository.layout import converter_file, teacher_shard
from pwl_hf.modeling.repository.manifest import FileEntry, Manifest
from pwl_hf.modeling.schedule import Schedule
from tests.evaluation.helpers import save_digits_model

MASKS = masks_of("all", 3)


def sizes(*_: object) -> StageBytes:
    """A student and three blocks of 100 bytes, converters of 1."""
    paths = {"model.safetensors": 100, **{teacher_shard(block, 3): 100 for block in (1, 2, 3)}}
    paths |= {converter_file(way, i): 1 for way in ("encoder", "decoder") for i in (1, 2)}
    entries = [FileEntry(path, size, f"{i:064x}", 1) for i, (path, size) in enumerate(paths.items())]
    return StageBytes(Manifest.build("float32", Schedule.prefixes(3), entries))


def section(definitions, by_seed):
    entries = {seed: {"accuracy": found} for seed, found in by_seed.items()}
    results = Results(3, "images", (0, 1, 2), {"paper": {}, "ours": entries})
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


# --- How many images a choice takes ----------------------------------------------------------------------------------


def numbers(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if re.match(r"\| \d", line)
    ]


def model_of(divergences: dict[str, float], chances: dict[str, float], images: int = 400) -> Model:
    """One whose divergence says as much on each image, and whose right answers are drawn."""
    draw = torch.Generator().manual_seed(0)
    answers = {
        mask: Answers(torch.rand(images, generator=draw) < chances[mask], torch.full((images,), divergences[mask]))
        for mask in MASKS
    }
    return Model(answers, sizes(), 3)


def test_a_choice_by_a_sure_measure_loses_nothing_and_one_by_few_answers_more():
    chances = by_count(SST=0.7, STT=0.85)
    exact = {mask: 1 - chance for mask, chance in chances.items()}
    rows = numbers(render_choices([model_of(exact, chances)], "title", (10, 200, 1000)))
    # There are no 1,000 images in a half of 400.
    assert [row[0] for row in rows] == ["10", "200"]
    assert all(float(cell) == 0 for row in rows for cell in row[1:3])
    assert float(rows[0][3]) > float(rows[1][3])
    assert float(rows[0][4]) > float(rows[0][3])


def test_a_measure_that_is_the_wrong_way_round_loses():
    chances = by_count(SST=0.7, STT=0.9)
    (row,) = numbers(render_choices([model_of(chances, chances)], "title", (200,)))
    assert float(row[1]) > 1


def test_models_are_read_with_all_their_masks(tmp_path):
    folder = save_digits_model(tmp_path / "digits-pwl")
    found = read_model(folder, "digits", 40)
    expected = evaluate_repository(folder, DataSource("digits", max_samples=40), orders="all").evaluation
    assert found.num_blocks == 4
    assert {mask: int(one.right.sum()) for mask, one in found.answers.items()} == {
        mask.sources: mask.correct for mask in expected.masks
    }
    divergences = {mask: one.divergence.mean().item() for mask, one in found.answers.items()}
    assert divergences["TTTT"] == 0
    assert min(value for mask, value in divergences.items() if mask != "TTTT") > 0


def test_command_says_that_no_model_is_there(tmp_path):
    arguments = ["choosing", "--data", str(tmp_path), "--work", str(tmp_path), "--store", str(tmp_path / "a.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "no model of order lies there" in done.output
