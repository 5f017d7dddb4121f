"""Two processes on the CPU, started by torchrun as users start them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pwl_hf import PWLForImageClassification
from pwl_hf.training.images.mixup import Mixup
from tests.children import Child
from tests.slow import slow_but
from tests.tiny import tiny_model
from tests.training.distributed_runs import run
from tests.training.tiny_runs import differences, everything

SCRIPT = Path(__file__).with_name("distributed_runs.py")


TRIED = ("terms", "unused", "overlay", "mixup", "accumulated")
# A launch imports everything twice, and a run takes a second or two: slow are those that repeat a kind.
QUICK = ("vit", "vit-terms", "bert", "diverge")
SLOW = ("resnet", *(f"vit-{tried}" for tried in TRIED[1:]), "bert-relations")


def _start(folder, runs):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(SCRIPT), str(folder), "4", runs]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    # The launcher is a fork; it starts the two as it always does.
    with Child(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        _, said = launcher.communicate(timeout=400)
    assert launcher.returncode == 0, said[-5000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The quick runs in two processes of four images each, by name."""
    folder = tmp_path_factory.mktemp("two")
    _start(folder, ",".join(QUICK))
    return folder


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory, two):
    """The folder of any run in two processes."""

    @cache
    def others():
        folder = tmp_path_factory.mktemp("others")
        _start(folder, ",".join(SLOW))
        return folder

    return lambda name: (two if name in QUICK else others()) / name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The ViT's run in this process, of eight images."""
    folder = tmp_path_factory.mktemp("one")
    run("vit", folder, 8)
    return folder


def _logs(folder, key):
    return [log for log in json.loads((folder / "log.json").read_text()) if key in log]


def test_two_processes_have_the_losses_of_one(one, two):
    alone, together = _logs(one, "loss"), _logs(two / "vit", "loss")
    assert [log["step"] for log in together] == [1, 2, 3, 4]
    for expected, found in zip(alone, together, strict=True):
        names = {name for name in expected if name.startswith("loss")}
        assert names == {"loss", "loss_student", "loss_prefix", "loss_mask", "loss_sync", "loss_recon"}
        for name in names | {"grad_norm", "learning_rate"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-4), (found["step"], name)


@pytest.mark.parametrize("name", slow_but(QUICK, ["bert", "bert-relations"]))
def test_two_processes_have_the_losses_of_one_over_padded_texts(name, run_of_two, tmp_path):
    run(name, tmp_path, 8)
    alone, together = _logs(tmp_path, "loss"), _logs(run_of_two(name), "loss")
    assert [log["step"] for log in together] == [1, 2, 3, 4]
    # Each process pads to its own longest text.
    for expected, found in zip(alone, together, strict=True):
        names = {key for key in expected if key.startswith("loss")}
        assert {"loss_student", "loss_prefix", "loss_mask", "loss_sync", "loss_recon"} <= names
        assert ("loss_relation" in names) is (name != "bert")
        for key in names | {"grad_norm"}:
            assert found[key] == pytest.approx(expected[key], rel=1e-4), (found["step"], key)
    measured = _logs(tmp_path, "eval_loss"), _logs(run_of_two(name), "eval_loss")
    for expected, found in zip(*measured, strict=True):
        for key in ("eval_accuracy", "eval_macro_f1_stage_0", "eval_accuracy_stage_3"):
            assert found[key] == pytest.approx(expected[key])
    ended = load_file(run_of_two(name) / "rank-1.safetensors")
    for key, tensor in load_file(tmp_path / "rank-0.safetensors").items():
        torch.testing.assert_close(ended[key], tensor, atol=1e-4, rtol=1e-3)


def test_two_processes_measure_what_one_does(one, two):
    for expected, found in zip(_logs(one, "eval_loss"), _logs(two / "vit", "eval_loss"), strict=True):
        for name in [f"eval_accuracy_stage_{stage}" for stage in range(5)] + ["eval_accuracy"]:
            assert found[name] == pytest.approx(expected[name])


def test_two_processes_end_with_the_weights_of_one(one, two):
    alone, together = (load_file(folder / "rank-0.safetensors") for folder in (one, two / "vit"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-4, rtol=1e-3)


def _in_fours(original):
    """Mixup as two processes do it: each within its own images."""

    def mixed(self, pixel_values, labels, sample_ids, **kwargs):
        parts = zip(*(tensor.split(4) for tensor in (pixel_values, labels, sample_ids)), strict=True)
        return tuple(map(torch.cat, zip(*(original(self, *part, **kwargs) for part in parts), strict=True)))

    return mixed


@pytest.mark.parametrize("tried", slow_but(["terms"], TRIED))
def test_options_have_the_same_losses_in_two_processes(tried, one, run_of_two, tmp_path, monkeypatch):
    monkeypatch.setattr(Mixup, "__call__", _in_fours(Mixup.__call__))
    run(f"vit-{tried}", tmp_path, 8)
    alone, together, plain = (_logs(path, "loss") for path in (tmp_path, run_of_two(f"vit-{tried}"), one))
    # What is tried does something: more than the two may differ by.
    assert [log["loss"] for log in alone] != pytest.approx([log["loss"] for log in plain], rel=1e-3)
    assert tried != "terms" or {"loss_relation", "loss_attention"} <= alone[0].keys()
    for expected, found in zip(alone, together, strict=True):
        assert expected.keys() == found.keys()
        for name in [*(name for name in expected if name.startswith("loss")), "grad_norm"]:
            assert found[name] == pytest.approx(expected[name], rel=1e-4), (found["step"], name)
    for rank in (0, 1):
        ended = load_file(run_of_two(f"vit-{tried}") / f"rank-{rank}.safetensors")
        for name, tensor in load_file(tmp_path / "rank-0.safetensors").items():
            torch.testing.assert_close(ended[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", slow_but(QUICK, ["vit", "resnet"]))
def test_all_processes_end_the_same_and_with_the_teacher_as_it_was(family, run_of_two):
    ranks = [load_file(run_of_two(family) / f"rank-{rank}.safetensors") for rank in (0, 1)]
    assert not differences(*ranks)
    before = everything(tiny_model(family), "teacher.")
    assert not differences(before, {name: ranks[1][name] for name in before})


@pytest.mark.parametrize("family", slow_but(QUICK, ["vit", "resnet"]))
def test_what_is_saved_is_what_all_processes_ended_with(family, run_of_two):
    saved = PWLForImageClassification.from_pretrained(run_of_two(family) / "checkpoint-4", keep_all=True)
    assert not differences(everything(saved), load_file(run_of_two(family) / "rank-1.safetensors"))


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed(run_of_two, tmp_path):
    for family in ("vit", "resnet"):
        shutil.copytree(run_of_two(family) / "checkpoint-2", tmp_path / family / "checkpoint-2")
    _start(tmp_path, "vit,resnet")
    for family in ("vit", "resnet"):
        for rank in (0, 1):
            name = f"rank-{rank}.safetensors"
            assert not differences(load_file(tmp_path / family / name), load_file(run_of_two(family) / name))


def test_images_of_one_process_that_are_not_finite_end_the_run_in_all(two):
    for rank in (0, 1):
        said = (two / "diverge" / f"rank-{rank}.txt").read_text()
        assert said.startswith("step 3: training stopped")
        assert "the loss of step 3 is NaN or infinite; the last whole checkpoint is" in said
        assert "checkpoint-2" in said
