"""docs/text.md and docs/audio.md: their code prints what is shown, and their commands have options that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import transformers
from fastapi.testclient import TestClient
from transformers import Wav2Vec2FeatureExtractor
from typer.main import get_command
from typer.testing import CliRunner

from pwl_hf import PWLForAudioClassification, PWLForSequenceClassification
from pwl_hf.cli import app
from pwl_hf.training import train, train_teacher
from pwl_hf.training.command_line import RECIPES
from tests.data.sounds import tone
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import network_config
from tests.slow import slow_but

ROOT = Path(__file__).resolve().parents[2]
TEXTS = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("text", "audio")}
SCRIPTS = {"training/train.py": train, "training/train_teacher.py": train_teacher}


def fences(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [
        line for name in TEXTS for block in fences(name, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words[0] != "pip"]


# What a page's repository is of: its first words, Auto class, type of networks, and what makes their inputs.
PAGES: dict[str, tuple[str, Any, str, Any]] = {
    "text": ("banking-pwl", PWLForSequenceClassification, "bert", bert_tokenizer),
    "audio": (
        "digits-spoken-pwl",
        PWLForAudioClassification,
        "wav2vec2",
        lambda _: Wav2Vec2FeatureExtractor(sampling_rate=8000),
    ),
}


@pytest.fixture(params=slow_but(["text"], PAGES))
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page, and the working directory that it speaks of."""
    name, model_class, model_type, processing = PAGES[request.param]
    with torch.random.fork_rng(devices=[]):
        networks = [
            getattr(transformers, model_class.task).from_config(network_config(model_type, role))
            for role in ("teacher", "student")
        ]
    model_class.from_teacher_student(
        *networks, num_blocks=3, processing_class=processing(tmp_path / "words")
    ).save_pretrained(tmp_path / name)
    soundfile.write(tmp_path / "seven.wav", tone(60, 0.5, 16000), 16000)
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def test_blocks_print_what_is_shown(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    exported = next(words for words in commands() if words[:3] == ["pwl-hf", "export", PAGES[page][0]])
    for code, shown in zip(fences(page, "python"), fences(page, "text"), strict=True):
        if "import runtime" in code:
            assert CliRunner().invoke(app, exported[1:]).exit_code == 0
        capsys.readouterr()
        exec(compile(code, f"docs/{page}.md", "exec"), {})
        assert capsys.readouterr().out == shown


def test_the_server_answers_as_shown(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples import serve

    block = next(block for block in fences(page, "bash") if "curl" in block)
    (server, *requests) = [shlex.split(line) for line in block.splitlines()]
    assert server == ["python", "examples/serve.py", PAGES[page][0]]
    monkeypatch.setenv("PWL_REPO", PAGES[page][0])
    shown = fences(page, "none")[0].splitlines()
    with TestClient(serve.app) as client:
        assert serve.app.state.classifier.streams[-1].wait(60)
        for (_, option, given, address), answer in zip(requests, shown, strict=True):
            sent: dict[str, Any] = {"json": json.loads(given)} if option == "--json" else {}
            sent = sent or {"content": Path(given.removeprefix("@")).read_bytes()}
            found = client.post(address.partition(":8000")[2], **sent)
            assert re.fullmatch(re.escape(answer).replace(r"\.\.\.", "[^,{}]+"), json.dumps(found.json())), found.text


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_have_options_and_recipes_that_exist(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever this machine is.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    if words[0] == "pwl-hf":
        command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known
        return
    if words[0] == "curl" or words[1] == "examples/serve.py":
        return  # what the server answers has a test above
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
