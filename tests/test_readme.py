"""The README: its code runs, its commands exist, and the numbers in it are those that its command gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks.digits import CAPABILITIES, KIND, key_of
from benchmarks.store import Store
from pwl_hf.cli import app
from pwl_hf.demo import run_demo
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.training.train import command_line, train
from tests.children import python

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _fences(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_block_prints_what_was_measured(tmp_path):
    options = ["--max_steps", "3", "--teacher_options", "max_steps=3", "--disable_tqdm", "true", "--use_cpu", "true"]
    accuracies = train(command_line().parse(["vit-digits", "--output_dir", str(tmp_path / "digits-pwl"), *options]))
    (block,), (shown,) = _fences("python"), _fences("text")
    done = python(block, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed == [
        re.sub(r"[\d.]+%", f"{accuracy:.1%}", line)
        for line, accuracy in zip(shown.splitlines(), accuracies, strict=True)
    ]


def test_shown_table_and_shown_output_agree():
    table = re.findall(r"^\| (\d) \| `([ST]+)` \| [\d,]+ \| [\d,]+ \| ([\d.]+)% \|$", README, flags=re.MULTILINE)
    (shown,) = _fences("text")
    assert shown.splitlines() == [f"stage {k} {mask}: {float(value):.1f}% right" for k, mask, value in table]


@pytest.mark.slow
def test_demo_gives_the_shown_table(tmp_path):
    result = run_demo(tmp_path / "digits-pwl", quiet=True)
    table = re.findall(r"^\| (\d) \| `[ST]+` \| ([\d,]+) \| [\d,]+ \| ([\d.]+)% \|$", README, flags=re.MULTILINE)
    assert len(table) == len(result.stages)
    for stage, (_, size, value) in zip(result.stages, table, strict=True):
        assert f"{stage.added_bytes:,}" == size
        # Sums come in another order on another machine.
        assert abs(stage.accuracy * 100 - float(value)) < 3


def test_ci_runs_the_second_command_word_for_word():
    second = next(block.strip() for block in _fences("bash") if "pytest" in block)
    assert second in (ROOT / ".ci" / "run").read_text().splitlines()


def test_first_command_runs_the_demo():
    first = _fences("bash")[0]
    assert first.rstrip().endswith("pwl-hf demo")
    assert "-c constraints.txt" in first


def test_every_command_of_the_table_exists():
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `pwl-hf (\w+)", page, flags=re.MULTILINE))
    assert named == set(get_command(app).commands)


def test_stated_range_of_the_digits_is_that_of_the_stored_runs():
    runs = Store(ROOT / "model_cards" / "digits.json", kinds=(KIND,)).read(KIND)
    measured = [runs[key] for seed in range(5) for name in CAPABILITIES if (key := key_of(seed, name)) in runs]
    assert f"({len(measured)} runs" in README
    for mask, title in (("SSSS", "the student's accuracy is"), ("TTTT", "the teacher's")):
        values = [100 * entry["accuracy"][mask] for entry in measured]
        assert f"{title} {min(values):.1f} % to {max(values):.1f} %" in " ".join(README.split())


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_card_of_the_digits_is_that_of_the_table():
    manifest = Repository.open(ROOT / "model_cards" / "digits-vit").manifest()
    table = re.findall(r"^\| \d \| `[ST]+` \| ([\d,]+) \| [\d,]+ \| ([\d.]+)% \|$", README, flags=re.MULTILINE)
    for stage, (size, value) in zip(manifest.stages, table, strict=True):
        assert f"{sum(entry.bytes for entry in stage.files):,}" == size
        assert f"{stage.metrics[0].value * 100:.2f}" == value
