"""The demo's story, with a training of a few steps."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from pwl_hf import PWLError, demo
from tests.children import Child

TINY = ["--max_steps", "3", "--teacher_options", "max_steps=3"]


def printing() -> Console:
    return Console(file=io.StringIO(), width=120)


# Its launcher is a fork; the training that the launcher starts is a process of its own.
@pytest.fixture(scope="module")
def told(tmp_path_factory):
    console = printing()
    folder = tmp_path_factory.mktemp("demo") / "digits [1]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen", Child)
        result = demo.run_demo(folder, quiet=True, training_arguments=TINY, console=console)
    return result, console.file.getvalue()


def test_table_shows_what_each_stage_adds(told):
    result, text = told
    assert [stage.sources for stage in result.stages] == ["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"]
    total = 0
    for stage in result.stages:
        names = ["model.safetensors"] if stage.stage == 0 else [f"teacher/model-{stage.stage:05d}-of-00004.safetensors"]
        names += [f"converters/encoder-{stage.stage:05d}.safetensors"] if stage.stage in (1, 2, 3) else []
        size = sum((result.directory / name).stat().st_size for name in names)
        total += size
        assert (stage.added_bytes, stage.total_bytes) == (size, total)
        row = next(line for line in text.splitlines() if stage.sources in line)
        for cell in (f"{size:,}", f"{total:,}", f"{stage.accuracy:.2%}"):
            assert cell in row


def test_accuracies_are_those_of_the_manifest(told):
    result, _ = told
    stages = json.loads((result.directory / "pwl_index.json").read_text())["stages"]
    assert [stage.accuracy for stage in result.stages] == [stage["metrics"][0]["value"] for stage in stages]


def test_text_tells_the_student_s_size_and_the_teacher_s_exactness(told):
    result, text = told
    first, last = result.stages[0], result.stages[-1]
    assert f"model.safetensors: {first.added_bytes:,} of {last.total_bytes:,} bytes" in text
    assert "bit for bit" in text
    assert str(result.directory) in text


def test_chart_is_a_picture(told):
    result, _ = told
    assert result.chart.parent == result.directory
    assert result.chart.read_bytes().startswith(b"\x89PNG")


def test_failed_training_is_told_with_its_last_line(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_run", lambda *_, **__: (1, "Traceback:\nValueError: num_blocks must be 1\n"))
    with pytest.raises(PWLError, match="ValueError: num_blocks must be 1"):
        demo.run_demo(tmp_path, quiet=True, console=printing())


@pytest.mark.slow
def test_failed_training_is_told_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", Child)
    with pytest.raises(PWLError, match="num_blocks must be at least 1, got 0"):
        demo.run_demo(tmp_path, quiet=True, training_arguments=["--num_stages", "0"], console=printing())


def test_last_stage_that_is_not_the_teacher_is_an_error(told, tmp_path):
    result, _ = told
    folder = tmp_path / "changed"
    shutil.copytree(result.directory, folder)
    config = json.loads((folder / "teacher" / "config.json").read_text())
    (folder / "teacher" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.1}))
    with pytest.raises(PWLError, match="does not answer as the teacher"):
        demo._grow(folder, printing())


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "sklearn" else True)
    with pytest.raises(PWLError, match=r"the demo needs sklearn: pip install 'pwl-hf\[train\]'"):
        demo.run_demo(tmp_path)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="there are no process groups")
def test_training_ends_with_a_demo_that_is_ended():
    # As accelerate's launcher: a process that starts another, which would live on.
    starting = "import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])".format(
        inner="import time; print('training', flush=True); time.sleep(600)"
    )
    code = f"import sys; from pwl_hf.demo import _run; _run([sys.executable, '-c', {starting!r}], quiet=False)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.terminate()
    # The pipe is at its end once all have let go of it.
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 128 + signal.SIGTERM
