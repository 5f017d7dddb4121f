"""docs/rungs.md: its code prints what it says, and its commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from pwl_hf.cli import app
from tests.repository.helpers import load
from tests.tiny import tiny_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rungs.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_code_prints_the_rungs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model("vit").save_pretrained("digits-pwl")
    exec(blocks("python")[0], {})
    assert capsys.readouterr().out == blocks("text")[0]
    assert load("digits-rungs").schedule == tuple(blocks("text")[0].split())


def test_its_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("vit").save_pretrained("digits-pwl")
    lines = [line for line in blocks("bash")[0].splitlines() if line.startswith("pwl-hf ")]
    assert len(lines) == 2
    for line in lines:
        found = CliRunner().invoke(app, shlex.split(line)[1:])
        assert found.exit_code == 0, found.output
        assert "QQQS" in found.output
