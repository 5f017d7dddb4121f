"""The comparison of recipes: what is run, what is kept, what is shown. Training itself is a stand-in here."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.recipes import goals, masks
from benchmarks.recipes.costs import measure_rounds, render_costs
from benchmarks.recipes.definitions import Definitions, load_definitions
from benchmarks.recipes.engine import check_files, fill
from benchmarks.recipes.estimates import Estimate, accuracy, beyond_spread, difference
from benchmarks.recipes.processes import ChildFailed, Children
from benchmarks.recipes.runs import Run, filled, run_of, runs_of
from benchmarks.recipes.schedule import Task, perform
from benchmarks.recipes.store import Store, StoreError
from benchmarks.recipes.tables import render
from benchmarks.recipes.workplace import Workplace, flags
from pwl_hf.training import train_teacher

DEFINITIONS = {
    "data": {
        "toy": {"title": "toy images", "options": {"dataset": "{data}/toy"}, "evaluate": {"dataset": "{data}/toy"}}
    },
    "pairs": {
        "small": {
            "title": "A small pair",
            "data": "toy",
            "teacher": {"epochs": 2, "seed": 0},
            "training": {"num_stages": 3, "epochs": 1},
        },
        "other": {"title": "Another", "data": "toy", "teacher": {"seed": 1}, "training": {"num_stages": 2}},
    },
    "recipes": {
        "plain": {"title": "plain", "options": {"weight": 0, "alpha": 0.4}, "orders": "prefix"},
        "paper": {"title": "paper", "options": {"weight": 1}},
        "ours": {"title": "ours", "extends": "paper", "options": {"weight": 2}, "pairs": {"other": {"weight": 3}}},
    },
    "tables": {
        "orders": {
            "title": "Orders",
            "form": "orders",
            "sections": [
                {"title": "Small", "pair": "small", "recipes": ["paper", "ours"], "base": "ours"},
                {"title": "Other", "pair": "other", "recipes": ["ours"], "base": "ours"},
            ],
        },
        "variants": {
            "title": "Variants",
            "form": "variants",
            "sections": [{"title": "Small", "pair": "small", "recipes": ["plain", "paper", "ours"], "base": "plain"}],
        },
        "speed": {
            "title": "Speed",
            "form": "cost",
            "rounds": 2,
            "options": {"max_steps": 3},
            "sections": [{"title": "Small", "pair": "small", "recipes": ["paper", "ours"], "base": "ours"}],
        },
    },
}


def write_definitions(folder: Path, changes: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for kind, entries in (DEFINITIONS | (changes or {})).items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump({kind: entries}))
    return folder


@pytest.fixture
def definitions(tmp_path) -> Definitions:
    return load_definitions(write_definitions(tmp_path / "definitions"))


class Scripts:
    """Stands in for the training scripts and `pwl-hf evaluate`: reads what they are given, writes what they would."""

    def __init__(self, broken: str | None = None) -> None:
        self.commands: list[list[str]] = []
        self.options: list[dict[str, object]] = []
        self.broken = broken
        self._lock = threading.Lock()

    def __call__(self, command, log) -> None:
        with self._lock:
            self.commands.append(list(command))
        words = " ".join(command)
        if self.broken is not None and self.broken in words:
            raise ChildFailed(f"{self.broken} is broken")
        log.write_text("a line\n")
        if "evaluate" in command:
            self._evaluate(command)
        else:
            self._train(Path(command[-1]))

    def _train(self, recipe: Path) -> None:
        options = yaml.safe_load(recipe.read_text())
        with self._lock:
            self.options.append(options)
        folder = Path(options["output_dir"])
        folder.mkdir(parents=True)
        (folder / "options.json").write_text(json.dumps(options))
        figures = {"train_runtime": 10.0, "train_samples_per_second": 100.0 * (1 + options.get("weight", 0))}
        (folder / "train_results.json").write_text(json.dumps(figures))

    def _evaluate(self, command) -> None:
        given = dict(itertools.pairwise(command))
        options = json.loads((Path(command[4]) / "options.json").read_text())
        n = options["num_stages"]
        rows = masks.prefixes(n)
        if given["--orders"] == "all":
            rows = ["".join(mask) for mask in itertools.product("ST", repeat=n)]
        base = 0.5 + 0.01 * options["weight"] + 0.001 * options["seed"]
        Path(given["--output"]).write_text(evaluation({row: base + 0.1 * row.count("T") / n for row in rows}))


def evaluation(accuracies: dict[str, float]) -> str:
    rows = [{"sources": mask, "accuracy": value} for mask, value in accuracies.items()]
    return json.dumps({"dataset": {"n": 200}, "masks": rows})


def run_all(definitions, table, tmp_path, scripts, *, seeds=(0, 1), jobs=2, **options) -> dict[str, str]:
    workplace = Workplace(tmp_path / "work", tmp_path / "data", scripts)
    runs = runs_of(definitions, definitions.tables[table], seeds)
    return fill(runs, Store(tmp_path / "results.json"), workplace, jobs=jobs, report=lambda _: None, **options)


# The runs


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


def test_failed_teacher_keeps_only_its_own_runs_from_running(definitions, tmp_path):
    failed = run_all(definitions, "orders", tmp_path, Scripts(broken="small-teacher"))
    assert len(failed) == 5
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
        filled({"files": ["{data}/a"]}, None)


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


# Definitions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": {"p": {"title": "", "data": "none", "teacher": {}, "training": {"num_stages": 1}}}}, "'none'"),
        ({"pairs": {"p": {"title": "", "data": "toy", "teacher": {}, "training": {}}}}, "num_stages"),
        ({"recipes": {"a": {"title": "", "extends": "b"}, "b": {"title": "", "extends": "a"}}}, "extends itself"),
        ({"recipes": {"a": {"titel": ""}}}, "'titel'"),
        ({"recipes": {"a": {}}}, "needs title"),
        ({"recipes": {"a": {"title": "", "orders": "some"}}}, "'some'"),
        ({"tables": {"t": {"title": "", "form": "graph", "sections": []}}}, "'graph'"),
        (
            {"tables": {"t": {"title": "", "form": "orders", "sections": [{"title": "", "pair": "small"}]}}},
            "needs recipes, base",
        ),
        ({"models": {}}, "'models'"),
    ],
)
def test_wrong_definitions_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_definitions(write_definitions(tmp_path / "wrong", change))


def test_entry_that_is_defined_twice_is_refused(tmp_path):
    folder = write_definitions(tmp_path / "twice")
    (folder / "more.yaml").write_text(yaml.safe_dump({"data": DEFINITIONS["data"]}))
    with pytest.raises(ValueError, match=r"data\.toy is defined twice"):
        load_definitions(folder)


def test_what_is_said_of_a_pair_wins_over_what_is_said_of_all(definitions):
    assert definitions.recipe_options("ours", "small") == {"weight": 2}
    assert definitions.recipe_options("ours", "other") == {"weight": 3}


# The store


def test_store_keeps_what_others_added_meanwhile(tmp_path):
    path = tmp_path / "store.json"
    threads = [threading.Thread(target=Store(path).add, args=("runs", f"run-{i}", {"seed": i})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry["seed"] for entry in Store(path).read("runs").values()} == set(range(16))
    assert len([line for line in path.read_text().splitlines() if "run-" in line]) == 16


def test_store_that_is_none_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "store.json"
    for text, message in [("{", "is not JSON"), ("[]", "no store"), ('{"version": 9}', "found 9")]:
        path.write_text(text)
        with pytest.raises(StoreError, match=message):
            Store(path).add("runs", "key", {})
        assert path.read_text() == text


def test_store_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    store = Store(tmp_path / "store.json")
    store.add("runs", "a", {"seed": 0})
    with pytest.raises(TypeError):
        store.add("runs", "b", {"seed": object()})
    assert list(store.read("runs")) == ["a"]


# Tables


def test_table_shows_what_is_missing_and_how_many_seeds_there_are(definitions, tmp_path):
    table = definitions.tables["orders"]
    empty = render(definitions, table, {}, [0, 1], "made so")
    assert "| prefix | `SSS` | – | – |" in empty
    assert "not measured yet" in empty
    run_all(definitions, "orders", tmp_path, Scripts(broken="small-ours-seed1"))
    text = render(definitions, table, Store(tmp_path / "results.json").read("runs"), [0, 1], "made so")
    assert "| prefix | `SSS` | 51.0 ± 0.1 | **52.0 (1 of 2 seeds)** |" in text
    assert "toy images, 200 test images" in text
    assert "made so" in text


def test_orders_table_has_every_row_the_best_in_bold_and_the_goals(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    text = render(definitions, definitions.tables["orders"], Store(tmp_path / "results.json").read("runs"), [0, 1], "")
    rows = [line.split("|")[2].strip(" `") for line in text.split("## Other")[0].splitlines() if line.startswith("|")]
    assert rows[2:] == ["SSS", "TSS", "TTS", "TTT", "SST", "STT", "STS"]
    assert "| suffix | `STT` | 57.7 ± 0.1 | **58.7 ± 0.1** |" in text
    assert "Above paper on every row: met" in text
    assert "Every stage at least as good as the one before: met" in text
    assert "No mask of all 8 below the student beyond the spread: met" in text


def test_runs_of_an_older_definition_are_not_shown(definitions, tmp_path):
    run_all(definitions, "orders", tmp_path, Scripts())
    recipes = DEFINITIONS["recipes"] | {"paper": {"title": "paper", "options": {"weight": 9}}}
    changed = load_definitions(write_definitions(tmp_path / "changed", {"recipes": recipes}))
    text = render(changed, changed.tables["orders"], Store(tmp_path / "results.json").read("runs"), [0, 1], "")
    assert "| prefix | `SSS` | – | 52.0 ± 0.1 |" in text


def test_variants_table_shows_of_a_student_alone_only_the_student(definitions, tmp_path):
    run_all(definitions, "variants", tmp_path, Scripts())
    stored = Store(tmp_path / "results.json").read("runs")
    rows = render(definitions, definitions.tables["variants"], stored, [0, 1], "").splitlines()
    (plain,) = [row for row in rows if row.startswith("| plain ")]
    (ours,) = [row for row in rows if row.startswith("| ours ")]
    assert plain == "| plain | 50.0 ± 0.1 | – | – | – | – | 1.00 |"
    assert ours == "| ours | **52.0 ± 0.1** | +2.0 ± 0.0 | **57.0 ± 0.1** | **57.0 ± 0.1** | +3.3 ± 0.0 | 0.33 |"


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
    measure_rounds(definitions, table, store, workplace, [], lambda _: None)
    assert len(scripts.options) == 5


def test_cost_table_without_rounds_is_visibly_empty(definitions):
    text = render_costs(definitions, definitions.tables["speed"], {}, "")
    assert "| Small | ours | – | – | 0 of 2 |" in text


# Goals and estimates


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


def test_goal_of_prefix_names_the_dip():
    assert "met" in goals.no_prefix_dip(seeds(SS=0.6, TS=0.6, TT=0.8), 2)
    assert "`TS` -1.0" in goals.no_prefix_dip(seeds(SS=0.61, TS=0.6, TT=0.8), 2)


def test_goal_of_all_masks_is_unknown_until_all_are_measured():
    assert goals.UNKNOWN in goals.none_below_student(seeds(SS=0.6, TS=0.7, TT=0.8), 2)
    assert "met" in goals.none_below_student(seeds(SS=0.6, TS=0.7, ST=0.65, TT=0.8), 2)
    assert "missed** by 1; the lowest is `ST`" in goals.none_below_student(seeds(SS=0.6, TS=0.7, ST=0.5, TT=0.8), 2)


def test_rows_of_the_three_orders():
    assert masks.prefixes(3) == ["SSS", "TSS", "TTS", "TTT"]
    assert masks.suffixes(3) == ["SST", "STT"]
    assert masks.contiguous(4) == ["STSS", "SSTS", "STTS"]


# Tasks and processes


def test_tasks_wait_for_what_they_need():
    order: list[str] = []

    def task(name: str, *needs: str) -> Task:
        return Task(name, lambda: order.append(name), frozenset(needs))

    assert perform([task("c", "b"), task("b", "a"), task("a")], 2, lambda _: None) == {}
    assert order == ["a", "b", "c"]


def test_tasks_run_side_by_side_up_to_the_number_of_jobs():
    together, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.05)
        with lock:
            together[0] -= 1

    perform([Task(str(i), work) for i in range(6)], 2, lambda _: None)
    assert most[0] == 2


def test_failure_reaches_all_that_need_it():
    def fail() -> None:
        raise RuntimeError("no disk")

    tasks = [Task("c", fail, frozenset("b")), Task("b", fail, frozenset("a")), Task("a", fail)]
    assert perform(tasks, 1, lambda _: None) == {
        "a": "no disk",
        "b": "not run: a failed",
        "c": "not run: b failed",
    }


def test_task_that_needs_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="need some that are not there: a"):
        perform([Task("a", lambda: None, frozenset("z"))], 1, lambda _: None)


def test_child_has_one_thread_and_its_output_is_logged(tmp_path):
    log = tmp_path / "log.txt"
    with Children() as children:
        children([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], log)
    assert log.read_text() == "1\n"


def test_failed_child_is_told_with_the_end_of_its_log(tmp_path):
    with Children() as children, pytest.raises(ChildFailed, match=r"ended with 3(.|\n)*no such option"):
        children([sys.executable, "-c", "print('no such option'); raise SystemExit(3)"], tmp_path / "log.txt")


def test_children_end_with_the_command(tmp_path):
    """A command that is asked to end leaves no training behind."""
    code = f"""
import signal, sys, threading
from pathlib import Path
from benchmarks.recipes.command import _interrupt
from benchmarks.recipes.processes import Children
signal.signal(signal.SIGTERM, _interrupt)
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with Children() as children:
    threading.Thread(target=lambda: children([sys.executable, "-c", child], Path({str(tmp_path / "log")!r}))).start()
    threading.Event().wait()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    log = tmp_path / "log"
    wait_for(lambda: log.exists() and log.read_text().strip() != "")
    child = int(log.read_text())
    parent.send_signal(signal.SIGTERM)
    parent.wait(20)
    wait_for(lambda: not Path(f"/proc/{child}").exists())


def wait_for(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# The command


def test_command_writes_the_table_beside_the_store_without_running(tmp_path):
    folder = write_definitions(tmp_path / "definitions")
    arguments = ["recipes", "orders", "--table-only", "--store", str(tmp_path / "results.json")]
    done = CliRunner().invoke(app, [*arguments, "--definitions", str(folder), "--seeds", "0,1,2"])
    assert done.exit_code == 0, done.output
    assert "| prefix | `SSS` | – | – |" in (tmp_path / "orders.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["graph"], "graph"), (["headline", "--seeds", "a"], "whole numbers"), (["headline"], "--data")],
)
def test_command_refuses_what_it_does_not_know(tmp_path, arguments, message):
    done = CliRunner().invoke(app, ["recipes", *arguments, "--store", str(tmp_path / "results.json")])
    assert done.exit_code == 2
    assert message in done.output


# What is defined


def every_run() -> list[Run]:
    definitions = load_definitions()
    tables = definitions.tables.values()
    return list({run.key: run for table in tables for run in runs_of(definitions, table, [0])}.values())


def test_teachers_are_of_options_that_the_script_knows(tmp_path):
    teachers = {run.training.teacher.key: run.training.teacher for run in every_run()}
    for name, teacher in teachers.items():
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(filled(teacher.options, tmp_path) | {"output_dir": str(tmp_path)}))
        train_teacher.command_line().parse([str(recipe)])
