"""Two saves into one folder at once: one of the two, whole, or an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from pwl_hf import Metric, RepositoryError, SaveError
from pwl_hf.modeling.publishing import saving
from pwl_hf.modeling.publishing.saving import write_metrics
from pwl_hf.modeling.repository import output_folder
from pwl_hf.modeling.repository.manifest import Manifest
from tests.children import Child
from tests.repository.helpers import INDEX, STUDENT, contents, load, logits, tree
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
SAVER = """
import sys
from tests.tiny import tiny_model
model = tiny_model("vit", num_stages=int(sys.argv[2]), seed=int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[4])):
    model.save_pretrained(sys.argv[1])
"""


@pytest.fixture
def two(tmp_path: Path):
    """Two models of different layouts, and what each is saved as."""
    models = [tiny_model("vit", num_stages=2), tiny_model("vit", num_stages=4, seed=1)]
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / f"whole-{i}")
    return models, [contents(tmp_path / f"whole-{i}") for i in range(2)]


def run_all(*works) -> list[BaseException]:
    """Run in threads at once; what was raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work) -> None:
        try:
            barrier.wait()
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def save_at_once(models, folder: Path) -> list[BaseException]:
    return run_all(*(lambda model=model: model.save_pretrained(folder) for model in models))


def test_threads_leave_one_of_two_saves_whole(two, tmp_path):
    models, whole = two
    for turn in range(8):
        folder = tmp_path / f"out-{turn // 4}"
        assert not save_at_once(models, folder)
        assert contents(folder) in whole


def test_a_folder_is_checked_when_the_other_save_has_ended(two, tmp_path):
    models, whole = two
    folder = tmp_path / "out"
    folder.mkdir()
    saver = threading.Thread(target=models[0].save_pretrained, args=(folder,))
    with output_folder.exclusive_folder(folder):
        # Of a save under way, which no manifest lists.
        (folder / STUDENT).write_bytes(b"half")
        saver.start()
        saver.join(0.5)
        assert saver.is_alive()
        (folder / STUDENT).unlink()
    saver.join()
    assert contents(folder) == whole[0]


def test_processes_leave_one_of_two_saves_whole(two, tmp_path):
    _, whole = two
    folder = tmp_path / "out"
    commands = [[sys.executable, "-c", SAVER, str(folder), n, seed, "5"] for n, seed in (("2", "0"), ("4", "1"))]
    savers = [
        Child(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for saver in savers:
        assert saver.stdout.readline() == "ready\n"
    for saver in savers:
        saver.stdin.write("\n")
        saver.stdin.flush()
    for saver in savers:
        _, said = saver.communicate(timeout=120)
        assert saver.returncode == 0, said[-2000:]
    assert contents(folder) in whole


def test_saver_waits_for_another_and_leaves_its_temporary_files_alone(two, tmp_path, monkeypatch):
    """One stands still in the middle of a file; the other comes when it is done."""
    models, whole = two
    folder, inside, go_on, order = tmp_path / "out", threading.Event(), threading.Event(), []
    real = saving.save_file

    def slow(tensors, path, **kwargs) -> None:
        real(tensors, path, **kwargs)
        if threading.current_thread() is first and not inside.is_set():
            inside.set()
            assert go_on.wait(60)
            assert Path(path).exists(), "it was removed by the other save"

    def save(model, name: str) -> None:
        model.save_pretrained(folder)
        order.append(name)

    monkeypatch.setattr(saving, "save_file", slow)
    first = threading.Thread(target=save, args=(models[0], "first"))
    second = threading.Thread(target=save, args=(models[1], "second"))
    first.start()
    assert inside.wait(60)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(60)
    second.join(60)
    assert order == ["first", "second"]
    assert contents(folder) == whole[1]


def test_saver_that_waits_in_vain_says_so_and_writes_nothing(two, tmp_path, monkeypatch):
    models, _ = two
    models[0].save_pretrained(tmp_path / "out")
    before = tree(tmp_path / "out")
    monkeypatch.setattr(output_folder, "_LOCK_SECONDS", 0.1)
    with (
        output_folder.exclusive_folder(tmp_path / "out"),
        pytest.raises(SaveError, match=r"another process has been saving into it.*nothing was written"),
    ):
        models[1].save_pretrained(tmp_path / "out")
    assert tree(tmp_path / "out") == before
    models[1].save_pretrained(tmp_path / "out")


def test_lock_ends_with_its_save_also_if_a_child_was_forked_meanwhile(tmp_path):
    with output_folder.exclusive_folder(tmp_path) as held:
        assert held
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
    try:
        with output_folder.exclusive_folder(tmp_path) as held:
            assert held
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize("path", [STUDENT, "config.json", INDEX])
def test_save_that_another_came_between_is_an_error_where_folders_cannot_be_locked(two, tmp_path, monkeypatch, path):
    """The other save puts a file into its place after this one has."""
    models, whole = two
    folder = tmp_path / "out"
    monkeypatch.setattr(output_folder, "fcntl", None)
    real = saving._check_undisturbed

    def disturbed(root, placed) -> None:
        (tmp_path / "other").write_bytes(whole[1][path])
        os.replace(tmp_path / "other", folder / path)
        real(root, placed)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "_check_undisturbed", disturbed)
        with pytest.raises(SaveError, match=f"{path} was changed by another process.*save again"):
            models[0].save_pretrained(folder)
    with pytest.raises(RepositoryError):
        load(folder, keep_all=True)
    models[0].save_pretrained(folder)
    assert contents(folder) == whole[0]


def test_threads_where_folders_cannot_be_locked_leave_one_save_or_an_error_and_never_a_mixture(
    two, tmp_path, monkeypatch
):
    models, whole = two
    monkeypatch.setattr(output_folder, "fcntl", None)
    answers = [logits(model) for model in models]
    for turn in range(10):
        folder = tmp_path / f"out-{turn}"
        errors = save_at_once(models, folder)
        assert all(isinstance(error, SaveError) for error in errors), errors
        if not errors:
            assert contents(folder) in whole
            continue
        try:
            found = logits(load(folder))
        except RepositoryError:
            continue
        assert any(torch.equal(found, answer) for answer in answers)


def test_metrics_are_written_when_a_save_that_is_under_way_has_ended(two, tmp_path):
    """A manifest is read, changed and written: the one of an earlier save would come back otherwise."""
    models, _ = two
    folder, metric = tmp_path / "out", Metric("accuracy", 0.5, "digits", "test", 10)
    models[0].save_pretrained(folder)
    measuring = threading.Thread(target=write_metrics, args=(folder, {0: [metric]}))
    with output_folder.exclusive_folder(folder):
        before = (folder / INDEX).read_bytes()
        measuring.start()
        measuring.join(0.3)
        assert measuring.is_alive()
        assert (folder / INDEX).read_bytes() == before
    measuring.join(60)
    manifest = Manifest.from_json((folder / INDEX).read_bytes())
    assert manifest.stages[0].metrics == (metric,)
    # What was measured on the same weights stays, also if the model was loaded before.
    models[0].save_pretrained(folder)
    assert Manifest.from_json((folder / INDEX).read_bytes()) == manifest


def test_copy_that_differs_from_its_source_is_refused(saved, tmp_path, monkeypatch):
    """A disk that writes something else, or a source that is changed while it is read."""
    real = shutil.copyfile

    def spoiling(source, target) -> None:
        real(source, target)
        content = bytearray(Path(target).read_bytes())
        content[-1] ^= 1
        Path(target).write_bytes(content)

    model = load(saved("vit"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", spoiling)
        with pytest.raises(SaveError, match=r"was not written: the copy of .* has sha256"):
            model.save_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not list((tmp_path / "out").rglob("*.tmp"))
    model.save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(saved("vit"))
