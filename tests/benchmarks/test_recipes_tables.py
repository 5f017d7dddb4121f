"""The tables of a comparison, and the goals beneath them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.recipes import goals, masks
from benchmarks.recipes.costs import measure_rounds, render_costs
from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.estimates import Estimate, accuracy, beyond_spread, difference
from benchmarks.recipes.tables import render
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Entry, Store
from tests.benchmarks.stand_ins import DEFINITIONS, Scripts, run_all, write_definitions


def stored_runs(folder: Path) -> dict[str, Entry]:
    return Store(folder / "results.json").read("runs")


def test_table_shows_what_is_missing_and_how_many_seeds_there_are(definitions, tmp_path):
    table = definitions.tables["orders"]
    empty = render(definitions, table, {}, {}, [0, 1], "made so")
    assert "| prefix | `SSS` | – | – |" in empty
    assert "not measured yet" in empty
    run_all(definitions, "orders", tmp_path, Scripts(broken="small-ours-seed1"))
    text = render(definitions, table, stored_runs(tmp_path), {}, [0, 1], "made so")
    assert "| prefix | `SSS` | 51.0 ± 0.1 | **52.0 (1 of 2 seeds)** |" in text
    assert "toy images, 200 test images" in text
    assert "made so" in text


def test_orders_table_has_every_row_the_best_in_bold_and_the_goals(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    text = render(definitions, definitions.tables["orders"], stored_runs(tmp_path), {}, [0, 1], "")
    rows = [line.split("|")[2].strip(" `") for line in text.split("## Other")[0].splitlines() if line.startswith("|")]
    assert rows[2:] == ["SSS", "TSS", "TTS", "TTT", "SST", "STT", "STS"]
    assert "| suffix | `STT` | 57.7 ± 0.1 | **58.7 ± 0.1** |" in text
    assert "Above paper on every row: met" in text
    assert "Every stage at least as good as the one before: met" in text
    assert "No mask of all 8 below the student beyond the spread: met" in text


def test_variant_of_the_base_has_the_same_goals_and_is_nothing_to_beat(tmp_path):
    quick = {"title": "quick", "extends": "ours", "options": {"weight": 0.5}}
    section = DEFINITIONS["tables"]["orders"]["sections"][0] | {"recipes": ["paper", "ours", "quick"]}
    orders = DEFINITIONS["tables"]["orders"] | {"sections": [section]}
    changes = {
        "recipes": DEFINITIONS["recipes"] | {"quick": quick},
        "tables": DEFINITIONS["tables"] | {"orders": orders},
    }
    definitions = load_definitions(write_definitions(tmp_path / "definitions", changes))
    run_all(definitions, "orders", tmp_path, Scripts())
    text = render(definitions, definitions.tables["orders"], stored_runs(tmp_path), {}, [0, 1], "")
    ours, quick = text.split("Goals, for ours:")[1].split("Goals, for quick:")
    assert "Above paper on every row: met" in ours
    assert "Above paper on every row: **missed** on 7 of 7" in quick
    assert "Above quick" not in text
    assert "Above ours" not in text


def test_runs_of_an_older_definition_are_not_shown(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    recipes = DEFINITIONS["recipes"] | {"paper": {"title": "paper", "options": {"weight": 9}}}
    changed = load_definitions(write_definitions(tmp_path / "changed", {"recipes": recipes}))
    text = render(changed, changed.tables["orders"], stored_runs(tmp_path), {}, [0, 1], "")
    assert "| prefix | `SSS` | – | 52.0 ± 0.1 |" in text


def test_variants_table_shows_of_a_student_alone_only_the_student(definitions, tmp_path):
    run_all(definitions, "variants", tmp_path, Scripts())
    rows = render(definitions, definitions.tables["variants"], stored_runs(tmp_path), {}, [0, 1], "").splitlines()
    assert "| plain | 50.0 ± 0.1 | – | – | – | – | – |" in rows
    assert "| ours | **52.0 ± 0.1** | +2.0 ± 0.0 | **57.0 ± 0.1** | **57.0 ± 0.1** | +3.3 ± 0.0 | – |" in rows


def test_variants_table_has_the_time_of_the_rounds_in_which_both_took_turns(definitions, tmp_path):
    store, workplace = Store(tmp_path / "results.json"), Workplace(tmp_path / "work", tmp_path / "data", Scripts())
    measure_rounds(definitions, definitions.tables["variants-speed"], store, workplace, [], lambda _: None)
    rows = render(definitions, definitions.tables["variants"], {}, store.read("rounds"), [0, 1], "").splitlines()
    assert any(row.endswith("| time, relative, 1 of 1 rounds |") for row in rows)
    assert "| plain | – | – | – | – | – | 1.00 |" in rows
    assert "| ours | – | – | – | – | – | 0.33 |" in rows


def test_cost_table_compares_within_rounds(definitions, tmp_path):
    scripts, store = Scripts(), Store(tmp_path / "results.json")
    table = definitions.tables["speed"]
    workplace = Workplace(tmp_path / "work", tmp_path / "data", scripts)
    measure_rounds(definitions, table, store, workplace, [], lambda _: None)
    timed = [options["weight"] for options in scripts.options if "weight" in options]
    assert timed == [1, 2, 2, 1]
    assert all(options["max_steps"] == 3 for options in scripts.options if "weight" in options)
    text = render_costs(definitions, table, store.read("rounds"), "made so")
    assert "| Small | ours | 300 | 1.50 (1.50 to 1.50) | 2 of 2 |" in text
    assert "Small: ours 1.6 times as fast as paper: **missed**, 1.50." in text
    measure_rounds(definitions, table, store, workplace, [], lambda _: None)
    assert len(scripts.options) == 5


def test_cost_table_without_rounds_is_visibly_empty(definitions):
    text = render_costs(definitions, definitions.tables["speed"], {}, "")
    assert "| Small | ours | – | – | 0 of 2 |" in text
    assert "as fast as paper: not measured yet" in text


def test_estimate_is_mean_and_sample_deviation():
    assert Estimate.of([]) is None
    assert Estimate.of([0.5, 0.7]).percent(of=2) == "60.0 ± 14.1"
    assert Estimate.of([0.5]).percent(of=1) == "50.0"
    assert Estimate.of([0.5]).percent(of=3) == "50.0 (1 of 3 seeds)"
    assert math.isnan(Estimate.of([0.5]).spread)


def test_difference_is_paired_by_seed():
    runs = {0: {"S": 0.5, "T": 0.6}, 1: {"S": 0.7, "T": 0.8}, 2: {"S": 0.9}}
    found = difference(runs, "T", runs, "S")
    assert (found.mean, found.spread, found.count) == (pytest.approx(0.1), pytest.approx(0, abs=1e-9), 2)
    assert accuracy(runs, "S").count == 3


@pytest.mark.parametrize(("values", "below"), [([-0.1, -0.12], True), ([-0.1, 0.09], False), ([-0.1], True)])
def test_below_is_beyond_the_spread(values, below):
    assert beyond_spread(Estimate.of(values)) is below


def seeds(**accuracies: float) -> dict[int, dict[str, float]]:
    return {seed: {mask: value + 0.001 * seed for mask, value in accuracies.items()} for seed in (0, 1)}


def test_goal_of_every_row_names_the_rows_that_miss_it():
    ours, paper = seeds(SS=0.6, TS=0.7, TT=0.8), seeds(SS=0.5, TS=0.75, TT=0.8)
    (sentence,) = goals.above_on_every_row(ours, {"paper": paper}, ["SS", "TS", "TT"])
    assert "missed" in sentence
    assert "`TS` -5.0" in sentence
    assert "SS" not in sentence
    assert "TT" not in sentence


def test_goal_of_every_row_wants_more_than_equal_except_of_the_teacher():
    even = seeds(SS=0.6, TT=0.8)
    (sentence,) = goals.above_on_every_row(even, {"paper": even}, ["SS", "TT"])
    assert "missed** on 1 of 2" in sentence


def test_goal_of_a_student_that_was_trained_alone_is_its_own_row():
    ours, plain = seeds(SS=0.6, TS=0.7, TT=0.8), seeds(SS=0.58)
    rows = ["SS", "TS", "TT"]
    assert goals.above_on_every_row(ours, {"plain": plain}, rows) == [
        "The student above that of plain: met; +2.0 ± 0.0 points."
    ]
    (sentence,) = goals.above_on_every_row(ours, {"plain": seeds(SS=0.61)}, rows)
    assert sentence == "The student above that of plain: **missed** (`SS` -1.0 ± 0.0 points)."
    (sentence,) = goals.above_on_every_row({}, {"plain": plain}, rows)
    assert "not measured yet" in sentence


def test_goal_of_prefix_names_the_dip():
    assert "met" in goals.no_prefix_dip(seeds(SS=0.6, TS=0.6, TT=0.8), 2)
    assert "`TS` -1.0" in goals.no_prefix_dip(seeds(SS=0.61, TS=0.6, TT=0.8), 2)


def test_goal_of_all_masks_is_unknown_until_all_are_measured():
    assert goals.UNKNOWN in goals.none_below_student(seeds(SS=0.6, TS=0.7, TT=0.8), 2)
    assert "met" in goals.none_below_student(seeds(SS=0.6, TS=0.7, ST=0.65, TT=0.8), 2)
    assert "missed** by 1; the lowest is `ST`" in goals.none_below_student(seeds(SS=0.6, TS=0.7, ST=0.5, TT=0.8), 2)


def test_every_mask_of_the_three_orders_is_one_row():
    assert masks.rows(4) == {
        "prefix": ["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"],
        "suffix": ["SSST", "SSTT", "STTT"],
        "contiguous": ["STSS", "SSTS", "STTS"],
    }
