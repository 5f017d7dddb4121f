"""docs/training.md: its code runs, and what it names exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pwl_hf.training import train, train_teacher
from pwl_hf.training.command_line import RECIPES
from pwl_hf.training.networks.presets import PRESETS
from tests.children import python

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "training.md"
TEXT = DOCS.read_text(encoding="utf-8")
SCRIPTS = {"training/train.py": train, "training/train_teacher.py": train_teacher}
# Of the launchers, and of `pwl-hf` (`--family-module`) and its `evaluate`.
OF_OTHERS = {"multi_gpu", "num_processes", "num_machines", "machine_rank", "main_process_ip", "main_process_port"}
OF_OTHERS |= {"nproc_per_node", "cpu", "orders", "family", "store"}


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(fences("bash")).replace("\\\n", " ").splitlines()
    return [words for words in map(shlex.split, lines) if any(script in words for script in SCRIPTS)]


def test_python_block_prints_what_is_shown(tmp_path):
    (block,), (shown,) = fences("python"), fences("text")
    done = python(block, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert (tmp_path / "digits-pwl" / "pwl_index.json").is_file()


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_have_options_and_recipes_that_exist(words, monkeypatch, tmp_path):
    # Whatever this machine is.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-pwl").mkdir()
    (tmp_path / "digits-pwl" / "training_args.yaml").write_text((RECIPES / "vit-digits.yaml").read_text())
    script = next(script for script in SCRIPTS if script in words)
    parsed = SCRIPTS[script].command_line().parse(words[words.index(script) + 1 :])
    assert parsed.options["output_dir"]


def test_every_option_that_is_named_exists():
    known = set().union(*(set(script.command_line().parser._option_string_actions) for script in SCRIPTS.values()))
    named = {f"--{name}" for name in re.findall(r"--([a-z_]{3,})", TEXT)}
    assert named - known == {f"--{name}" for name in OF_OTHERS} & named


def test_recipes_and_presets_are_all_named():
    table = TEXT.partition("## Recipes")[2].partition("## Data")[0]
    recipes = {path.stem for path in RECIPES.glob("*.yaml") if not path.stem.endswith("-teacher")}
    assert recipes == set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)*)`(?=,| \|)", table)) & recipes
    assert all(f"`{preset}`" in TEXT for preset in PRESETS)


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (DOCS.parent / target).exists(), target
