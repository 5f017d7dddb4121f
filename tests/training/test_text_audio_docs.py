"""docs/text.md and docs/audio.md: their code prints what is shown, and their commands have options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForAudioClassification, AutoModelForSequenceClassification, Wav2Vec2FeatureExtractor
from typer.main import get_command

from pwl_hf import PWLForAudioClassification, PWLForSequenceClassification
from pwl_hf.cli import app
from pwl_hf.training import train, train_teacher
from pwl_hf.training.command_line import RECIPES
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import network_config

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("text", "audio")}
SCRIPTS = {"training/train.py": train, "training/train_teacher.py": train_teacher}


def fences(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [
        line for name in TEXTS for block in fences(name, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for words in map(shlex.split, lines) if words[0] != "pip"]


def test_first_block_of_texts_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng(devices=[]):
        networks = [
            AutoModelForSequenceClassification.from_config(network_config("bert", r)) for r in ("teacher", "student")
        ]
    model = PWLForSequenceClassification.from_teacher_student(
        *networks, num_blocks=3, processing_class=bert_tokenizer(tmp_path / "words")
    )
    model.save_pretrained(tmp_path / "banking-pwl")
    monkeypatch.chdir(tmp_path)
    exec(compile(fences("text", "python")[0], "docs/text.md", "exec"), {})
    assert capsys.readouterr().out == fences("text", "text")[0]


def test_first_block_of_sounds_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng(devices=[]):
        networks = [
            AutoModelForAudioClassification.from_config(network_config("wav2vec2", r)) for r in ("teacher", "student")
        ]
    model = PWLForAudioClassification.from_teacher_student(
        *networks, num_blocks=3, processing_class=Wav2Vec2FeatureExtractor(sampling_rate=8000)
    )
    model.save_pretrained(tmp_path / "digits-spoken-pwl")
    monkeypatch.chdir(tmp_path)
    exec(compile(fences("audio", "python")[0], "docs/audio.md", "exec"), {})
    assert capsys.readouterr().out == fences("audio", "text")[0]


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_have_options_and_recipes_that_exist(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever this machine is.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    if words[0] == "pwl-hf":
        command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known
        return
    script = next(script for script in SCRIPTS if script in words)
    parsed = SCRIPTS[script].command_line().parse(words[words.index(script) + 1 :])
    assert parsed.options["output_dir"]


@pytest.mark.parametrize("name", ["text", "audio"])
def test_options_and_recipes_that_are_named_exist(name: str) -> None:
    known = set().union(*(set(script.command_line().parser._option_string_actions) for script in SCRIPTS.values()))
    known |= {name for command in get_command(app).commands.values() for o in command.params for name in o.opts}  # type: ignore[attr-defined]
    assert set(re.findall(r"`(--[a-z_-]+)", TEXTS[name])) <= known
    table = TEXTS[name].partition("| recipe |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`((?:bert|ast|wav2vec2)-[a-z0-9-]+)`", table))
    assert named == {path.stem for path in RECIPES.glob("*.yaml")} & named
    kinds = ("bert",) if name == "text" else ("ast", "wav2vec2")
    assert named == {path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(kinds)}
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXTS[name]):
        assert (ROOT / "docs" / target).exists(), target
