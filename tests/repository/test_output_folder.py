"""What a save removes and writes over in its folder: what is the repository's own, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageClassification

from pwl_hf import OverwriteError, PWLForImageClassification, SaveError
from pwl_hf.conversion import convert_pair
from pwl_hf.modeling.publishing import saving
from pwl_hf.modeling.repository import output_folder
from pwl_hf.modeling.repository.files import leads_out
from tests.children import python
from tests.repository.helpers import INDEX, STUDENT, contents, load, logits, shard, tree
from tests.slow import slow_but
from tests.tiny import tiny_model, tiny_pair

STRANGERS = (
    "config.json",
    STUDENT,
    "teacher/config.json",
    shard(2),
    "teacher/model.safetensors.index.json",
    "converters/encoder-00001.safetensors",
    "teacher/config.json",
)


@pytest.fixture
def dead_process() -> int:
    """The number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of a teacher and a student."""
    torch.manual_seed(0)
    for name, config in zip(("teacher", "student"), tiny_pair("vit"), strict=True):
        AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "nets" / name)
    return tmp_path / "nets" / "teacher", tmp_path / "nets" / "student"


def put(folder: Path, *paths: str, content: str = "mine") -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)


# --- A folder that is no PWL repository -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", STRANGERS)
def test_save_over_a_file_in_a_folder_without_a_manifest_is_refused_and_changes_nothing(saved, tmp_path, path):
    put(tmp_path, path, "notes.txt")
    before = tree(tmp_path)
    with pytest.raises(OverwriteError, match=f"holds {path}.*overwrite=True.*--overwrite"):
        load(saved("vit")).save_pretrained(tmp_path)
    assert tree(tmp_path) == before
    assert {found.name for found in tmp_path.iterdir()} == {"notes.txt", path.split("/")[0]}


def test_overwrite_replaces_those_files_and_removes_nothing(saved, tmp_path):
    others = ("pytorch_model.bin", "model-00001-of-00002.safetensors", "teacher/ema.safetensors", "README.md")
    put(tmp_path, *STRANGERS, *others)
    load(saved("vit")).save_pretrained(tmp_path, overwrite=True)
    found = contents(tmp_path)
    assert {path for path, content in found.items() if content == b"mine"} == set(others)
    assert {path: found[path] for path in contents(saved("vit"))} == contents(saved("vit"))


@given(paths=st.sets(st.sampled_from([*STRANGERS, "README.md", ".gitattributes", "pytorch_model.bin", "a/b.txt"])))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_save_keeps_every_file_that_was_there_or_is_refused(saved, tmp_path_factory, paths):
    folder = tmp_path_factory.mktemp("any")
    put(folder, *paths)
    try:
        load(saved("vit")).save_pretrained(folder)
    except OverwriteError:
        assert paths & set(STRANGERS)
        assert set(tree(folder)) == paths
    else:
        assert not paths & set(STRANGERS)
    assert all((folder / path).read_text() == "mine" for path in paths)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("config.json/notes.txt", r"config.json is a folder, and saving needs a file"),
        (f"{shard(2, 4)}/notes.txt", rf"{shard(2, 4)} is a folder, and saving needs a file"),
        ("teacher", "teacher is a file, and saving needs a folder"),
        ("converters", "converters is a file, and saving needs a folder"),
    ],
)
def test_what_stands_in_the_way_is_refused_before_anything_is_written(saved, tmp_path, path, message, overwrite):
    put(tmp_path, path)
    before = tree(tmp_path)
    with pytest.raises(OverwriteError, match=message):
        load(saved("vit")).save_pretrained(tmp_path, overwrite=overwrite)
    assert tree(tmp_path) == before


def test_empty_clone_of_the_hub_is_saved_into(saved, tmp_path):
    put(tmp_path, "README.md", ".gitattributes", ".git/config")
    load(saved("vit")).save_pretrained(tmp_path)
    assert all((tmp_path / path).read_text() == "mine" for path in ("README.md", ".gitattributes", ".git/config"))
    load(tmp_path)


def test_manifest_that_cannot_be_read_says_nothing_of_what_is_ours(copied):
    folder = copied("vit")
    (folder / INDEX).write_text("{")
    before = tree(folder)
    with pytest.raises(OverwriteError, match=f"its {INDEX}, .*cannot be read .*not JSON"):
        tiny_model("vit").save_pretrained(folder)
    assert tree(folder) == before
    tiny_model("vit").save_pretrained(folder, overwrite=True)
    load(folder)


# --- A folder that is one -------------------------------------------------------------------------------------------


def test_weights_that_the_manifest_does_not_list_are_not_written_over(copied):
    folder = copied("vit")
    put(folder, shard(1, 2))
    before = tree(folder)
    with pytest.raises(OverwriteError, match=f"{shard(1, 2)}, which its {INDEX} does not list"):
        tiny_model("vit", num_stages=2).save_pretrained(folder)
    assert tree(folder) == before


def test_folder_that_is_a_link_out_is_neither_written_to_nor_emptied(copied, tmp_path):
    folder, elsewhere = copied("vit"), tmp_path / "elsewhere"
    shutil.move(folder / "teacher", elsewhere)
    (folder / "teacher").symlink_to(elsewhere)
    before = tree(elsewhere)
    for num_stages in (2, 4):
        with pytest.raises(OverwriteError, match=r"teacher is a link to .*elsewhere"):
            tiny_model("vit", num_stages=num_stages, seed=3).save_pretrained(folder, overwrite=True)
    assert tree(elsewhere) == before


def test_files_of_a_listed_folder_that_is_a_link_out_are_not_removed(copied, tmp_path):
    """The old layout has a folder that the new one does not write to."""
    folder, elsewhere = copied("resnet"), tmp_path / "elsewhere"
    shutil.move(folder / "statistics", elsewhere)
    (folder / "statistics").symlink_to(elsewhere)
    before = tree(elsewhere)
    tiny_model("resnet", num_stages=2).save_pretrained(folder)
    assert tree(elsewhere) == before
    load(folder, stage="teacher")


# --- Temporary files ------------------------------------------------------------------------------------------------


def test_temporary_files_of_dead_processes_are_removed_and_all_others_stay(saved, tmp_path, dead_process):
    dead = [
        f".{STUDENT}.{dead_process}.tmp",
        f".config.json.{dead_process}.77.tmp",
        f"teacher/.{Path(shard(1)).name}.{dead_process}.77.tmp",
    ]
    alive = [
        f".{STUDENT}.{os.getpid()}.77.tmp",
        f"teacher/.{Path(shard(1)).name}.1.77.tmp",
        # Not of our files, and not of our making.
        f".thesis.doc.{dead_process}.77.tmp",
        f".{STUDENT}.tmp",
        "teacher/.tmpSgQxl4",
        "teacher/.tmp-notes",
    ]
    put(tmp_path, *dead, *alive)
    scratch = tmp_path / f".{STUDENT}.{dead_process}.78.tmp"
    put(scratch, ".tmpAbCdEf")
    load(saved("vit")).save_pretrained(tmp_path)
    assert not [path for path in [*dead, scratch] if (tmp_path / path).exists()]
    assert all((tmp_path / path).read_text() == "mine" for path in alive)


def test_temporary_files_stay_where_a_folder_cannot_be_locked(saved, tmp_path, dead_process, monkeypatch):
    """The process may run on another machine that shares the folder."""
    monkeypatch.setattr(output_folder, "fcntl", None)
    put(tmp_path, f".{STUDENT}.{dead_process}.77.tmp")
    load(saved("vit")).save_pretrained(tmp_path)
    assert (tmp_path / f".{STUDENT}.{dead_process}.77.tmp").exists()
    load(tmp_path)


# --- Saves that were cut short --------------------------------------------------------------------------------------

KILLED = """
import os, sys
from pwl_hf.modeling.publishing import saving
from pwl_hf.modeling.repository import files
from tests.tiny import tiny_model

left, replace = int(sys.argv[2]), os.replace

def dying(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    replace(source, target)

os.replace = dying
tiny_model("vit", num_stages=int(sys.argv[3])).save_pretrained(sys.argv[1])
"""


def kill_in_save(folder: Path, files: int, num_stages: int = 4) -> None:
    root = Path(__file__).resolve().parents[2]
    assert python(KILLED, cwd=root, arguments=[folder, files, num_stages], timeout=120).returncode == -9


@pytest.mark.parametrize("files", slow_but([1], [0, 1, 13]))
def test_same_save_after_a_kill_needs_no_cleaning(saved, tmp_path, files):
    folder = tmp_path / "out"
    kill_in_save(folder, files)
    assert not (folder / INDEX).exists()
    put(folder, "notes.txt")
    tiny_model("vit").save_pretrained(folder)
    found = contents(folder)
    assert found.pop("notes.txt") == b"mine"
    assert found == contents(saved("vit"))


def test_save_of_another_layout_after_a_kill_leaves_nothing_of_it(tmp_path, saved):
    folder = tmp_path / "out"
    kill_in_save(folder, 4, num_stages=2)
    assert (folder / shard(1, 2)).exists()
    tiny_model("vit").save_pretrained(folder)
    assert contents(folder) == contents(saved("vit"))


def test_kill_over_an_older_layout_leaves_nothing_after_the_next_save(copied, saved):
    folder = copied("vit")
    kill_in_save(folder, 4, num_stages=2)
    tiny_model("vit").save_pretrained(folder)
    assert contents(folder) == contents(saved("vit"))


def test_save_that_failed_is_done_again_without_overwrite(saved, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = load(saved("vit"))
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_text", fail)
        with pytest.raises(SaveError, match="the disk is full"):
            model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / STUDENT).exists()
    load(saved("vit")).save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(saved("vit"))


def test_sources_are_there_and_checked_before_anything_is_written(copied, tmp_path):
    folder = copied("vit")
    model = load(folder)
    (folder / shard(4)).unlink()
    tiny_model("vit", seed=7).save_pretrained(tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match=shard(4)):
        model.save_pretrained(tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("kind", ["a file of the user's", "a link"])
def test_note_of_another_is_neither_appended_to_nor_removed(saved, tmp_path, kind):
    folder, elsewhere = tmp_path / "out", tmp_path / "profile"
    folder.mkdir()
    elsewhere.write_text("mine")
    if kind == "a link":
        (folder / "pwl_saving.txt").symlink_to(elsewhere)
    else:
        put(folder, "pwl_saving.txt")
    with pytest.raises(OverwriteError, match=r"pwl_saving\.txt"):
        load(saved("vit")).save_pretrained(folder, overwrite=True)
    assert elsewhere.read_text() == (folder / "pwl_saving.txt").read_text() == "mine"


def test_note_that_came_with_a_clone_removes_nothing_outside(saved, tmp_path):
    kill_in_save(tmp_path / "out", 0)
    put(tmp_path, "victim.safetensors")
    put(tmp_path / "out", "README.md")
    with (tmp_path / "out" / "pwl_saving.txt").open("a") as file:
        file.write("../victim.safetensors\nREADME.md\n/etc/x.safetensors\nconverters\n")
    load(saved("vit")).save_pretrained(tmp_path / "out")
    assert (tmp_path / "victim.safetensors").exists()
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


# --- What a model is made from --------------------------------------------------------------------------------------


def same(folder: Path) -> Path:
    return folder


def through_a_link(folder: Path) -> Path:
    link = folder.parent / "link"
    link.symlink_to(folder)
    return link


def by_a_roundabout_way(folder: Path) -> Path:
    return folder.parent / "x" / ".." / folder.name


WAYS = [same, through_a_link, by_a_roundabout_way]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("role", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_folder_of_a_network_is_never_saved_into(pair, way: Callable[[Path], Path], role: int, overwrite: bool):
    (pair[0].parent / "x").mkdir()
    before = tree(pair[0].parent)
    model = PWLForImageClassification.from_teacher_student(*pair, num_stages=2)
    output = way(pair[role])
    for save in (model.save_pretrained, lambda path, **kwargs: convert_pair(*map(str, pair), path, **kwargs)):
        with pytest.raises(OverwriteError, match="made from"):
            save(output, overwrite=overwrite)
    assert {path: content for path, content in tree(pair[0].parent).items() if "link" not in path} == before


def test_parent_of_the_teachers_folder_is_not_saved_into(pair):
    before = tree(pair[0].parent)
    model = PWLForImageClassification.from_teacher_student(*pair, num_stages=2)
    with pytest.raises(OverwriteError, match="made from"):
        model.save_pretrained(pair[0].parent, overwrite=True)
    assert tree(pair[0].parent) == before


def test_folder_whose_teacher_is_a_link_to_the_teacher_is_not_saved_into(pair, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teacher").symlink_to(pair[0])
    before = tree(pair[0])
    with pytest.raises(OverwriteError, match="made from"):
        convert_pair(*map(str, pair), tmp_path / "out", overwrite=True)
    assert tree(pair[0]) == before


def test_folder_of_networks_that_were_given_as_models_or_relative_paths_is_not_saved_into(pair, monkeypatch):
    monkeypatch.chdir(pair[0].parent)
    models = [AutoModelForImageClassification.from_pretrained(folder) for folder in pair]
    given_models = PWLForImageClassification.from_teacher_student(*models, num_stages=2)
    by_name = PWLForImageClassification.from_teacher_student("teacher", "student", num_stages=2)
    for model in (given_models, by_name):
        for folder in pair:
            with pytest.raises(OverwriteError, match="made from"):
                model.save_pretrained(folder, overwrite=True)
    monkeypatch.chdir(Path("/"))
    with pytest.raises(OverwriteError, match="made from"):
        by_name.save_pretrained(pair[0], overwrite=True)


def test_repository_whose_teacher_was_taken_is_not_saved_into(copied, pair):
    folder = copied("vit")
    before = tree(folder)
    model = PWLForImageClassification.from_teacher_student(folder, pair[1], num_stages=4, teacher_subfolder="teacher")
    with pytest.raises(OverwriteError, match="made from"):
        model.save_pretrained(folder)
    assert tree(folder) == before


def test_folder_inside_of_a_network_is_saved_into(pair):
    before = tree(pair[0])
    model = PWLForImageClassification.from_teacher_student(*pair, num_stages=2)
    for _ in range(2):
        model.save_pretrained(pair[0] / "pwl")
    assert {path: content for path, content in tree(pair[0]).items() if not path.startswith("pwl/")} == before
    images = logits(load(pair[0] / "pwl"))
    assert torch.equal(images, logits(model))


def test_convert_refuses_its_output_before_it_loads_anything(pair, tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(PWLForImageClassification, "from_teacher_student", fail)
    put(tmp_path / "out", "preprocessor_config.json")
    with pytest.raises(OverwriteError, match=r"preprocessor_config\.json"):
        convert_pair(*map(str, pair), tmp_path / "out")


# --- Links ----------------------------------------------------------------------------------------------------------


def test_links_within_a_folder_do_not_lead_out_of_it(tmp_path):
    put(tmp_path / "in", "a/b.txt", "c.txt")
    put(tmp_path, "out.txt")
    (tmp_path / "in" / "a" / "inner").symlink_to("../c.txt")
    (tmp_path / "in" / "outer").symlink_to("../out.txt")
    (tmp_path / "in" / "folder").symlink_to(tmp_path)
    (tmp_path / "door").symlink_to("in")
    for root in (tmp_path / "in", tmp_path / "door"):
        assert not any(leads_out(root, path) for path in ("a/b.txt", "a/inner", "missing/x", "."))
        assert all(leads_out(root, path) for path in ("outer", "folder/out.txt", "folder/in/../out.txt"))


def test_refusal_to_replace_a_mapped_file_says_what_to_do_on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(output_folder, "os", SimpleNamespace(name="nt"))
    with (
        pytest.raises(SaveError, match=r"has the file open \(load it with disable_mmap=True\); save elsewhere"),
        output_folder.writing(tmp_path / "model.safetensors"),
    ):
        raise PermissionError(errno.EACCES, "Access is denied")
