"""docs/evaluating.md: its commands and code run, and the numbers in it agree with one another."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pwl_hf.cli import app, main
from pwl_hf.data import DataSource
from pwl_hf.demo import run_demo
from pwl_hf.evaluation import area_over_bytes, evaluate_repository, masks_of
from pwl_hf.evaluation.intervals import wilson

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "evaluating.md"
TEXT = DOCS.read_text(encoding="utf-8")
# What the command prints: a line a stage.
_ROW = re.compile(r"^│ ([ST]+) +│ ([\d.]+) kB +│ ([\d.]+)% +│ ([\d.]+) to ([\d.]+) +│", flags=re.MULTILINE)


def fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def beside_the_model(saved, tmp_path, monkeypatch):
    """A working directory in which there is `digits-pwl`."""
    (tmp_path / "digits-pwl").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def without_numbers(text: str) -> list[str]:
    """The cells of the table and the line below it, whatever their numbers and widths."""
    lines = [line for line in text.splitlines() if re.match(r"[│┃]|\d+ images", line)]
    cells = [[re.sub(r"-?[\d,.]*\d", "0", cell.strip()) for cell in re.split("[│┃]", line)] for line in lines]
    return [cell for line in cells for cell in line]


def test_command_prints_the_shown_table_and_writes_what_it_names(beside_the_model, monkeypatch, capsys):
    (command,) = (block.strip() for block in fences("bash"))
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--quiet"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert without_numbers(capsys.readouterr().out) == without_numbers(fences("text")[0])
    assert (beside_the_model / "digits.png").is_file()
    report = json.loads((beside_the_model / "digits.json").read_text())
    schema = TEXT.partition("## The report")[2].partition("\n## ")[0]
    for key in (*report, *report["repository"], *report["dataset"], *report["settings"], *report["masks"][0]):
        assert f"`{key}`" in schema, key
    for key in report["masks"][1]["over_student"]:
        assert f"`{key}`" in schema, key


def test_shown_numbers_agree():
    shown = fences("text")[0]
    rows = _ROW.findall(shown)
    assert [row[0] for row in rows] == masks_of("prefix", 4)
    for _, _, accuracy, low, high in rows:
        expected = wilson(round(float(accuracy) / 100 * 719), 719)
        assert (f"{100 * expected.low:.1f}", f"{100 * expected.high:.1f}") == (low, high)
    accuracies, kilobytes = ([float(row[column]) for row in rows] for column in (2, 1))
    (area,) = re.findall(r"over the bytes: ([\d.]+)\.\s", shown)
    assert area_over_bytes([a / 100 for a in accuracies], kilobytes) == pytest.approx(float(area), abs=2e-4)
    contiguous = dict(re.findall(r"^([ST]+): (\d+) of 719 right$", fences("text")[1], flags=re.MULTILINE))
    assert list(contiguous) == masks_of("contiguous", 4)
    for mask, accuracy in ((rows[0][0], accuracies[0]), (rows[-1][0], accuracies[-1])):
        assert f"{int(contiguous[mask]) / 7.19:.2f}" == f"{accuracy:.2f}"


def test_first_python_block_prints_what_is_shown_with_the_models_numbers(beside_the_model, capsys):
    exec(compile(fences("python")[0], str(DOCS), "exec"), {})
    printed = capsys.readouterr().out
    assert re.sub(r"\d+ of", "0 of", printed) == re.sub(r"\d+ of", "0 of", fences("text")[1])


def test_metrics_block_prints_what_is_shown(capsys):
    exec(compile(fences("python")[1], str(DOCS), "exec"), {})
    assert capsys.readouterr().out == fences("text")[2]


def test_every_option_is_in_the_table_or_common_to_all_commands():
    commands = get_command(app).commands
    options = {option for parameter in commands["evaluate"].params for option in parameter.opts if option[:2] == "--"}
    common = {option for parameter in commands["info"].params for option in parameter.opts}
    before = {option for parameter in get_command(app).params for option in parameter.opts}
    named = set(re.findall(r"(--[a-z][a-z-]+)", TEXT)) - before
    assert options - common - {"--quiet"} == named


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (DOCS.parent / target).exists(), target


@pytest.mark.slow
def test_demo_gives_the_shown_table(tmp_path):
    run_demo(tmp_path / "digits-pwl", quiet=True)
    found = evaluate_repository(tmp_path / "digits-pwl", DataSource("digits")).evaluation.accuracies
    shown = [float(row[2]) for row in _ROW.findall(fences("text")[0])]
    # Sums come in another order on another machine.
    assert [100 * value for value in found] == pytest.approx(shown, abs=5)
