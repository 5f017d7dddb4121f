"""The commands `recipes` and `cards`."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.recipes.cards import publish_card
from benchmarks.recipes.runs import run_of
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Store
from pwl_hf.modeling.publishing.model_card import write_card
from tests.benchmarks.stand_ins import Scripts, run_all, write_definitions
from tests.tiny import tiny_model


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


@pytest.mark.parametrize(
    ("broken", "options", "status", "row"),
    [
        (None, [], 0, "| paper | 51.0 | +1.0 | 56.0 | 56.0 | +3.3 | 0.50 |"),
        (None, ["--only", "small/p*"], 0, "| paper | 51.0 | +1.0 | 56.0 | 56.0 | +3.3 | – |"),
        ("small-ours", [], 1, "| paper | 51.0 | +1.0 | 56.0 | 56.0 | +3.3 | – |"),
    ],
    ids=["all", "single runs", "a recipe that fails"],
)
def test_command_trains_measures_and_takes_the_time(tmp_path, monkeypatch, broken, options, status, row):
    scripts = contextlib.nullcontext(Scripts(broken=broken))
    monkeypatch.setattr("benchmarks.recipes.command.Children", lambda threads: scripts)
    folder, store = write_definitions(tmp_path / "definitions"), str(tmp_path / "results.json")
    places = ["--store", store, "--data", str(tmp_path), "--work", str(tmp_path / "work"), "--definitions", str(folder)]
    done = CliRunner().invoke(app, ["recipes", "variants", "--seeds", "0", *places, *options])
    assert done.exit_code == status, done.output
    assert row in (tmp_path / "variants.md").read_text().replace("**", "").splitlines()


class ScriptsWithCards(Scripts):
    """Leaves a repository with its card, as the training script does."""

    def _train(self, recipe: Path) -> None:
        super()._train(recipe)
        options = yaml.safe_load(recipe.read_text())
        if "num_blocks" in options:
            tiny_model("vit", options["num_blocks"]).save_pretrained(options["output_dir"])
            write_card(options["output_dir"])


def test_cards_say_what_made_the_model_and_leave_the_weights(definitions, tmp_path):
    folder = tmp_path / "definitions"
    run_all(definitions, "variants", tmp_path, ScriptsWithCards(), seeds=(0,))
    arguments = ["cards", "variants", "--store", str(tmp_path / "results.json"), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, [*arguments, "--definitions", str(folder), "--only", "small/ours"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "small-ours-seed0").iterdir()} == {"README.md", "pwl_index.json"}
    assert not (tmp_path / "small-plain-seed0").exists()
    text = (tmp_path / "small-ours-seed0" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: pwl-hf")
    assert "python -m benchmarks recipes variants --only small/ours --seeds 0 --data DATA" in text
    assert "weight: 2" in text
    assert "the lowest of all 8 masks, `SSS`, 52.0 %" in text
    assert "of its test images the student has" in text
    (entry,) = (e for e in Store(tmp_path / "results.json").read("runs").values() if e["recipe"] == "ours")
    assert f"Measured on the saved bytes: toy images, split test, {entry['test_images']} images" in text
    for mask in ("SSS", "TSS", "TTS", "TTT"):
        assert re.search(rf"\| `{mask}` \|.*\| {entry['accuracy'][mask]:.4f} \|", text)
    assert str(tmp_path) not in text


def test_card_of_a_student_trained_alone_says_so(definitions, tmp_path):
    run_all(definitions, "variants", tmp_path, ScriptsWithCards(), seeds=(0,))
    arguments = ["cards", "variants", "--store", str(tmp_path / "results.json"), "--work", str(tmp_path / "work")]
    CliRunner().invoke(app, [*arguments, "--definitions", str(tmp_path / "definitions")])
    assert "it was trained alone" in (tmp_path / "small-plain-seed0" / "README.md").read_text()


def test_card_of_a_run_that_is_not_stored_is_told(definitions, tmp_path):
    arguments = ["cards", "variants", "--store", str(tmp_path / "results.json"), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, [*arguments, "--definitions", str(tmp_path / "definitions")])
    assert "small-ours-seed0: not stored" in done.output


def test_card_of_a_model_that_is_gone_is_told_and_the_others_are_made(definitions, tmp_path):
    run_all(definitions, "variants", tmp_path, ScriptsWithCards(), seeds=(0,))
    for folder in (tmp_path / "work" / "runs").glob("small-ours-*"):
        (folder / "done.json").unlink()
    arguments = ["cards", "variants", "--store", str(tmp_path / "results.json"), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, [*arguments, "--definitions", str(tmp_path / "definitions")])
    assert done.exit_code == 0, done.output
    assert "is not in the work folder" in done.output
    assert (tmp_path / "small-plain-seed0" / "README.md").is_file()


def test_card_without_its_work_folder_is_refused(definitions, tmp_path):
    run_all(definitions, "variants", tmp_path, ScriptsWithCards(), seeds=(0,))
    run = run_of(definitions, "small", "ours", 0)
    entry = Store(tmp_path / "results.json").read("runs")[run.key]
    with pytest.raises(FileNotFoundError, match="not in the work folder"):
        publish_card(run, entry, {}, "", Workplace(tmp_path / "elsewhere", None, Scripts()), tmp_path)
