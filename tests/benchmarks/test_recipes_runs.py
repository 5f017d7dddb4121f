"""What a comparison of recipes runs, keeps and does not repeat."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import pytest
import yaml

from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.engine import check_files, fill
from benchmarks.recipes.runs import filled, run_of, runs_of
from benchmarks.recipes.workplace import Workplace, flags
from benchmarks.store import Store
from tests.benchmarks.stand_ins import DEFINITIONS, Scripts, run_all, write_definitions


def test_fill_trains_each_teacher_once_and_stores_every_run(definitions, tmp_path):
    scripts = Scripts()
    assert run_all(definitions, "orders", tmp_path, scripts) == {}
    scripted = [command[2] for command in scripts.commands]
    assert scripted.count("pwl_hf.training.train_teacher") == 2
    assert scripted.count("pwl_hf.training.train") == scripted.count("pwl_hf.cli") == 6
    entries = Store(tmp_path / "results.json").read("runs")
    assert sorted((e["pair"], e["recipe"], e["seed"]) for e in entries.values()) == sorted(
        (pair, recipe, seed)
        for pair, recipe in [("small", "paper"), ("small", "ours"), ("other", "ours")]
        for seed in (0, 1)
    )
    entry = next(e for e in entries.values() if (e["pair"], e["recipe"], e["seed"]) == ("small", "ours", 1))
    assert entry["accuracy"]["TTT"] == pytest.approx(0.621)
    assert len(entry["accuracy"]) == 8
    assert entry["images_per_second"] == 300
    assert entry["test_images"] == 200
    assert entry["options"]["weight"] == 2
    assert entry["versions"]["torch"]


def test_training_gets_the_teacher_the_data_and_the_seed(definitions, tmp_path):
    scripts = Scripts()
    run_all(definitions, "orders", tmp_path, scripts, seeds=(7,))
    (given,) = [options for options in scripts.options if options.get("weight") == 3]
    assert given["seed"] == 7
    assert given["dataset"] == str(tmp_path / "data" / "toy")
    assert json.loads((Path(given["teacher"]) / "options.json").read_text())["seed"] == 1


def test_published_weights_are_the_teacher_of_a_family_of_ones_own(tmp_path):
    pair = DEFINITIONS["pairs"]["small"] | {
        "published": "my.published",
        "weights": {"w.safetensors": "0"},
        "teacher": {"weights": "{weights}/w.safetensors"},
        "training": {"num_blocks": 3, "family_module": "my.family"},
    }
    definitions = load_definitions(
        write_definitions(tmp_path / "definitions", {"pairs": DEFINITIONS["pairs"] | {"small": pair}})
    )
    scripts, store = Scripts(), Store(tmp_path / "results.json")
    workplace = Workplace(tmp_path / "work", tmp_path / "data", scripts, tmp_path / "weights")
    (run,) = runs_of(definitions, definitions.tables["orders"], [0], ["small/ours"])
    assert fill([run], store, workplace, jobs=1, report=lambda _: None) == {}
    assert [command[2] for command in scripts.commands] == ["my.published", "pwl_hf.training.train", "pwl_hf.cli"]
    assert scripts.commands[2][3:6] == ["--family-module", "my.family", "evaluate"]
    made, trained = scripts.options
    # Of the teacher, no data: its files are those of the weights.
    assert made == {"weights": str(tmp_path / "weights" / "w.safetensors"), "output_dir": trained["teacher"]}
    assert run.training.teacher.files == {"w.safetensors": "0"}
    assert "the teacher published, all else trained on" in definitions.pairs["small"].schedule
    text = (tmp_path / "results.json").read_text()
    assert str(tmp_path) not in text


def test_other_weights_make_another_teacher(tmp_path):
    keys = set()
    for name, digest in (("a", "0"), ("b", "1")):
        pair = DEFINITIONS["pairs"]["small"] | {"published": "my.published", "weights": {"w.safetensors": digest}}
        changed = {"pairs": DEFINITIONS["pairs"] | {"small": pair}}
        keys.add(run_of(load_definitions(write_definitions(tmp_path / name, changed)), "small", "ours", 0).key)
    assert len(keys) == 2


def test_store_holds_no_path_of_the_machine(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    text = (tmp_path / "results.json").read_text()
    assert str(tmp_path) not in text
    assert "DATA/toy" in text
    assert "python -m pwl_hf.training.train WORK/runs/" in text


def test_second_fill_runs_nothing(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    again = Scripts()
    run_all(definitions, "orders", tmp_path, again)
    assert again.commands == []


def test_pairs_with_the_same_teacher_share_it(definitions, tmp_path):
    pairs = DEFINITIONS["pairs"] | {"other": DEFINITIONS["pairs"]["small"] | {"training": {"num_blocks": 2}}}
    shared = load_definitions(write_definitions(tmp_path / "changed", {"pairs": pairs}))
    scripts = Scripts()
    run_all(shared, "orders", tmp_path, scripts, seeds=(0,))
    assert len([command for command in scripts.commands if command[2].endswith("train_teacher")]) == 1


def test_more_seeds_run_only_those_that_are_missing(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts(), seeds=(0,))
    more = Scripts()
    run_all(definitions, "orders", tmp_path, more, seeds=(0, 1))
    assert {options["seed"] for options in more.options} == {1}


def test_again_replaces_what_is_stored_and_keeps_the_teacher(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    again = Scripts()
    run_all(definitions, "orders", tmp_path, again, again=True)
    assert len(again.options) == 6


def test_failed_run_is_reported_not_stored_and_tried_again(definitions, tmp_path):
    failed = run_all(definitions, "orders", tmp_path, Scripts(broken="small-ours-seed1"))
    (name,) = failed
    assert name.startswith("small-ours-seed1")
    assert "broken" in failed[name]
    assert len(Store(tmp_path / "results.json").read("runs")) == 5
    second = Scripts()
    assert run_all(definitions, "orders", tmp_path, second) == {}
    assert len(second.options) == 1


def test_runs_wait_for_their_teacher(definitions, tmp_path):
    trained: set[str] = set()

    class Watched(Scripts):
        def _train(self, recipe: Path) -> None:
            options = yaml.safe_load(recipe.read_text())
            assert "teacher" not in options or options["teacher"] in trained
            if "teacher" not in options:
                time.sleep(0.05)
            super()._train(recipe)
            trained.add(options["output_dir"])

    assert run_all(definitions, "orders", tmp_path, Watched()) == {}


@pytest.mark.parametrize("jobs", [1, 2])
def test_scripts_run_side_by_side_up_to_the_number_of_jobs(definitions, tmp_path, jobs):
    together, most, lock = [0], [0], threading.Lock()

    class Watched(Scripts):
        def __call__(self, command, log) -> None:
            with lock:
                together[0] += 1
                most[0] = max(most[0], together[0])
            time.sleep(0.02)
            super().__call__(command, log)
            with lock:
                together[0] -= 1

    run_all(definitions, "orders", tmp_path, Watched(), jobs=jobs)
    assert most[0] == jobs


def test_failed_teacher_keeps_only_its_own_runs_from_running(definitions, tmp_path):
    failed = run_all(definitions, "orders", tmp_path, Scripts(broken="small-teacher"))
    assert len(failed) == 5
    assert sum(reason.startswith("not run: small-teacher") for reason in failed.values()) == 4
    assert {e["pair"] for e in Store(tmp_path / "results.json").read("runs").values()} == {"other"}


def test_evaluation_that_failed_does_not_train_again(definitions, tmp_path):
    assert len(run_all(definitions, "orders", tmp_path, Scripts(broken="evaluate"))) == 6
    second = Scripts()
    assert run_all(definitions, "orders", tmp_path, second) == {}
    assert second.options == []


def test_training_that_was_cut_off_starts_from_an_empty_folder(definitions, tmp_path):
    run = run_of(definitions, "small", "ours", 0)
    left = tmp_path / "work" / "runs" / run.training.key / run.training.name / "left.bin"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    run_all(definitions, "orders", tmp_path, Scripts(), seeds=(0,))
    assert (left.parent / "options.json").is_file()
    assert not left.exists()


def test_script_that_leaves_no_figures_is_a_failure_by_name(definitions, tmp_path):
    class Silent(Scripts):
        def _train(self, recipe: Path) -> None:
            super()._train(recipe)
            (Path(yaml.safe_load(recipe.read_text())["output_dir"]) / "train_results.json").unlink()

    failed = run_all(definitions, "orders", tmp_path, Silent(), seeds=(0,))
    assert any("train_results.json" in reason for reason in failed.values())
    assert Store(tmp_path / "results.json").read("runs") == {}


@pytest.mark.parametrize(
    "change",
    [
        {"recipes": {**DEFINITIONS["recipes"], "paper": {"title": "paper", "options": {"weight": 5}}}},
        {"data": {"toy": {**DEFINITIONS["data"]["toy"], "files": {"a": "0" * 64}}}},
        {"data": {"toy": {**DEFINITIONS["data"]["toy"], "evaluate": {"max_samples": 3}}}},
        {"pairs": {**DEFINITIONS["pairs"], "small": {**DEFINITIONS["pairs"]["small"], "teacher": {"epochs": 3}}}},
    ],
    ids=["option", "data", "evaluation", "teacher"],
)
def test_key_changes_with_everything_that_decides_the_outcome(definitions, tmp_path, change):
    other = load_definitions(write_definitions(tmp_path / "changed", change))
    assert run_of(definitions, "small", "paper", 0).key != run_of(other, "small", "paper", 0).key


def test_key_does_not_change_with_words(definitions, tmp_path):
    recipes = DEFINITIONS["recipes"] | {"paper": DEFINITIONS["recipes"]["paper"] | {"title": "another name"}}
    other = load_definitions(write_definitions(tmp_path / "changed", {"recipes": recipes}))
    assert run_of(definitions, "small", "paper", 0).key == run_of(other, "small", "paper", 0).key


def test_only_chooses_by_pattern_and_first_seeds_come_first(definitions):
    table = definitions.tables["orders"]
    assert [r.training.name for r in runs_of(definitions, table, [0, 1], ["*/ours"])] == [
        "small-ours-seed0",
        "other-ours-seed0",
        "small-ours-seed1",
        "other-ours-seed1",
    ]


def test_data_folder_that_is_needed_and_missing_is_told():
    with pytest.raises(ValueError, match="--data"):
        filled({"files": ["{data}/a"]}, {"data": None})


def test_flags_are_those_of_the_command_line():
    assert flags({"max_samples": 5, "plot": None, "quiet": True, "loud": False, "mask": ["ST", "TS"]}) == [
        *("--max-samples", "5", "--quiet", "--mask", "ST", "--mask", "TS")
    ]


def test_other_bytes_of_the_data_are_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"images")
    check_files({"a.parquet": hashlib.sha256(b"images").hexdigest()}, tmp_path)
    with pytest.raises(ValueError, match=r"a\.parquet is not the file"):
        check_files({"a.parquet": "0" * 64}, tmp_path)
    with pytest.raises(ValueError, match=r"no b\.parquet"):
        check_files({"b.parquet": "0" * 64}, tmp_path)
    with pytest.raises(ValueError, match="--data"):
        check_files({"a.parquet": "0" * 64}, None)
    with pytest.raises(ValueError, match="the folder of weights is needed, with a: give --weights DIR"):
        check_files({"a": "0" * 64}, None, "weights")
