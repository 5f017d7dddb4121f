"""The command `digits`: the demo over seeds and instruction sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import digits
from benchmarks.__main__ import app
from pwl_hf.modeling.repository.layout import MANIFEST_FILE
from pwl_hf.modeling.repository.manifest import Metric
from pwl_hf.modeling.repository.source import Repository
from tests.tiny import tiny_model


class Demos:
    """Stands in for the processes: each demo leaves a repository whose student is as good as its seed says."""

    def __init__(self):
        self.run = []

    def __call__(self, environment):
        self.environment = environment
        return self

    def __enter__(self):
        return self._demo

    def __exit__(self, *_):
        pass

    def _demo(self, command, log):
        seed, model = int(command[command.index("--seed") + 1]), Path(command[-1])
        self.run.append((seed, self.environment["ATEN_CPU_CAPABILITY"]))
        tiny_model("vit").save_pretrained(model)
        manifest = Repository.open(model).manifest()
        values = [0.5 + seed / 10, *[0.9 for _ in manifest.stages[1:]]]
        metrics = {stage: (Metric("accuracy", value, "toys", "test", 7),) for stage, value in enumerate(values)}
        (model / MANIFEST_FILE).write_text(manifest.with_metrics(metrics).to_json())
        (model / "train_results.json").write_text(json.dumps({"train_runtime": 1, "train_samples_per_second": 1}))


@pytest.fixture
def demos(monkeypatch):
    found = Demos()
    monkeypatch.setattr(digits, "Children", found)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    return found


def run(tmp_path, *arguments):
    places = ["--store", str(tmp_path / "digits.json"), "--work", str(tmp_path / "work")]
    return CliRunner().invoke(
        app, ["digits", "--seeds", "0,1,5", "--capabilities", "default,avx2", *places, *arguments]
    )


def test_every_seed_runs_with_every_instruction_set_and_the_table_has_the_range(tmp_path, demos):
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    assert demos.run == [(seed, name) for seed in (0, 1, 5) for name in ("default", "avx2")]
    text = (tmp_path / "digits.md").read_text()
    assert "6 of 6 runs of `pwl-hf demo`: seeds 0, 1, 5; ATEN_CPU_CAPABILITY default, avx2." in text
    assert "7 test images of toys" in text
    student, teacher = text.splitlines()[8], text.splitlines()[-5]
    assert student == f"| `{'S' * student.count('S')}` | 50.0 | 60.0 | 100.0 |"
    assert teacher == f"| `{'T' * teacher.count('T')}` | 90.0 | 90.0 | 90.0 |"
    assert "2 of " in text
    assert text.count("-10.0 (`T") == 2


def test_what_is_stored_is_not_run_again_unless_a_recipe_changed(tmp_path, demos, monkeypatch):
    run(tmp_path)
    demos.run.clear()
    assert run(tmp_path).exit_code == 0
    assert demos.run == []
    monkeypatch.setattr(digits, "read_recipe", lambda path: {"learning_rate": 1.0})
    assert run(tmp_path).exit_code == 0
    assert len(demos.run) == 6


def test_table_alone_runs_nothing_and_says_what_is_missing(tmp_path, demos):
    assert run(tmp_path, "--table-only").exit_code == 0
    assert demos.run == []
    assert "Not measured yet." in (tmp_path / "digits.md").read_text()


def test_instructions_that_are_not_there_are_refused_before_anything_runs(tmp_path, demos):
    done = run(tmp_path, "--capabilities", "default,avx512")
    assert done.exit_code == 2
    assert "'avx512' is none of default, avx2" in " ".join(done.output.replace("│", " ").split())
    assert demos.run == []
