"""docs/scheduling.md: its command and code run, its options exist, and its numbers are those of the stored table."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pwl_hf.cli import app, main
from pwl_hf.evaluation import area_over_bytes

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "scheduling.md"
TEXT = DOCS.read_text(encoding="utf-8")


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def beside_the_model(saved, tmp_path, monkeypatch):
    """A working directory in which there is `digits-pwl`."""
    (tmp_path / "digits-pwl").symlink_to(saved)
    monkeypatch.chdir(tmp_path)


def shape(line: str) -> str:
    """A line whatever its numbers, widths and masks."""
    return re.sub(
        r"[━┏┓┡┩└┘┴┳╇─]+", "-", re.sub(r"\b[ST]{4}\b", "M", re.sub(r"[-+]?[\d,.]*\d", "0", " ".join(line.split())))
    )


def test_command_prints_what_is_shown(beside_the_model, monkeypatch, capsys):
    (command,) = (block.strip() for block in fences("bash"))
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--quiet"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    # Another model: what becomes of it may be another line.
    shown, printed = (text.splitlines()[:-1] for text in (fences("text")[0], capsys.readouterr().out))
    assert [shape(line) for line in printed[: len(shown)]] == [shape(line) for line in shown]


def test_shown_numbers_agree():
    rows = re.findall(r"│ \d +│ ([ST]{4}) │ ([\d.]+) kB +│ ([\d.]+)% +│", fences("text")[0])
    (area,) = re.findall(r"over the bytes: ([\d.]+) now", fences("text")[0])
    found = area_over_bytes([float(row[2]) / 100 for row in rows], [float(row[1]) for row in rows])
    assert found == pytest.approx(float(area), abs=2e-4)


def test_python_block_prints_what_is_shown(beside_the_model, capsys):
    exec(compile(fences("python")[0], str(DOCS), "exec"), {})
    assert capsys.readouterr().out == fences("text")[1]


def test_every_option_is_in_the_table_or_common_to_all_commands():
    commands = get_command(app).commands
    options = {option for parameter in commands["schedule"].params for option in parameter.opts if option[:2] == "--"}
    common = {option for parameter in commands["info"].params for option in parameter.opts}
    named = set(re.findall(r"`(--[a-z][a-z-]+)", TEXT))
    assert options - common - {"--quiet"} == named


def test_gains_are_those_of_the_stored_table():
    stored = (ROOT / "model_cards" / "order.md").read_text(encoding="utf-8")
    gains = re.findall(r"\| ([\d ]+) \| ([-+][\d./ +-]+) \|", TEXT)
    assert len(gains) == 5
    for order, gain in gains:
        assert re.search(rf"\| {order} \| [^|]*\| {re.escape(gain)} \|", stored), order


def test_losses_are_those_of_the_stored_table():
    stored = (ROOT / "model_cards" / "order-images.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| ([\d,]+) \| ([\d.]+), ([\d.]+) \| ([\d.]+), ([\d.]+) \|", TEXT)
    assert len(rows) == 3
    for row in rows:
        assert f"| {' | '.join(row)} |" in stored


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (DOCS.parent / target).exists(), target
