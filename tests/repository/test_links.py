"""Links inside a folder: what they lead to outside of it is loaded if it is right, but neither copied nor published."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from pwl_hf import RepositoryError
from pwl_hf.modeling.publishing.push import Target, push_folder
from pwl_hf.training.trainer.checkpoints import CheckpointWriter, restore
from tests.repository.helpers import INDEX, STUDENT, contents, load, logits, publish, shard, tree
from tests.tiny import tiny_model

PROCESSOR = "preprocessor_config.json"
SECRET = b'{"password": "of mine"}'


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that is not to leave this machine."""
    (tmp_path / "secret").write_bytes(SECRET)
    return tmp_path / "secret"


def move_out(folder: Path, path: str, place: Path) -> None:
    """Put a link into the place of a file, or a folder, that is elsewhere now."""
    shutil.move(folder / path, place)
    (folder / path).symlink_to(os.path.relpath(place, (folder / path).parent))


@pytest.mark.parametrize("path", [PROCESSOR, "teacher/notes.json", "route.py", "teacher/code.py"])
def test_push_uploads_no_file_that_a_link_leads_to(hub, repo_id, copied, outside, path):
    folder = copied("vit")
    (folder / path).unlink(missing_ok=True)
    (folder / path).symlink_to(outside)
    with hub.record() as requests, pytest.raises(RepositoryError, match=f"'{path}' is a link to .*secret"):
        push_folder(folder, Target(repo_id))
    assert not requests


@pytest.mark.parametrize("path", [STUDENT, shard(2), "teacher", "config.json"])
def test_files_that_were_moved_out_are_loaded_and_neither_pushed_nor_copied(hub, repo_id, copied, tmp_path, path):
    folder = copied("vit")
    expected = [logits(load(folder, stage=stage)) for stage in range(5)]
    move_out(folder, path, tmp_path / "elsewhere")
    before = tree(tmp_path)
    for stage in range(5):
        assert torch.equal(logits(load(folder, stage=stage)), expected[stage])
    with hub.record() as requests, pytest.raises(RepositoryError, match=r"is a link to .*elsewhere"):
        push_folder(folder, Target(repo_id))
    model = load(folder)
    if path != "config.json":
        with pytest.raises(RepositoryError, match=r"is a link to .*elsewhere"):
            model.push_to_hub(repo_id)
        for save in (model.save_pretrained, lambda place: CheckpointWriter().write(load(folder, keep_all=True), place)):
            with pytest.raises(RepositoryError, match=r"is a link to .*elsewhere"):
                save(tmp_path / "copy")
    assert not requests
    assert tree(tmp_path) == before


def test_image_processor_that_is_a_link_out_is_not_copied(hub, repo_id, copied, outside, tmp_path):
    folder = copied("vit")
    (folder / PROCESSOR).symlink_to(outside)
    model = load(folder)
    for spread in (lambda: model.save_pretrained(tmp_path / "copy"), lambda: model.push_to_hub(repo_id)):
        with pytest.raises(RepositoryError, match=f"'{PROCESSOR}' is a link to .*secret"):
            spread()
    assert not (tmp_path / "copy").exists()


def test_links_within_the_folder_are_fine(hub, repo_id, copied, saved, tmp_path):
    folder = copied("vit")
    (folder / "store").mkdir()
    for path in (STUDENT, shard(1), "config.json"):
        move_out(folder, path, folder / "store" / Path(path).name)
    load(folder).save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(saved("vit"))
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]
    push_folder(folder, Target(repo_id))
    assert torch.equal(logits(load(repo_id)), logits(load(saved("vit"))))


def test_folder_that_is_reached_through_a_link_is_fine(copied, saved, tmp_path):
    (tmp_path / "door").symlink_to(copied("vit"))
    load(tmp_path / "door").save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(saved("vit"))


@pytest.mark.parametrize("subfolder", ["", "inner"])
def test_snapshot_of_the_hubs_cache_is_a_folder_like_any_other(hub, repo_id, saved, tmp_path, subfolder):
    publish(hub, repo_id, saved("vit"), subfolder)
    load(repo_id, keep_all=True, cache_dir=tmp_path / "cache", subfolder=subfolder)
    [config] = (tmp_path / "cache").rglob("snapshots/*/config.json" if not subfolder else "snapshots/*/*/config.json")
    assert config.is_symlink()
    model = load(config.parent)
    model.save_pretrained(tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(saved("vit"))
    push_folder(config.parent, Target(f"{repo_id}-again"))
    # A blob may be one that the cache shares among repositories.
    blob = (config.parent / STUDENT).resolve()
    shared = tmp_path / "cache" / "blobs" / "ab" / ("e" * 64)
    shared.parent.mkdir(parents=True)
    shutil.move(blob, shared)
    blob.symlink_to(shared)
    load(config.parent).save_pretrained(tmp_path / "copy again")


def test_link_out_of_a_snapshot_is_one_out_of_a_folder(hub, repo_id, saved, tmp_path, outside):
    publish(hub, repo_id, saved("vit"))
    load(repo_id, keep_all=True, cache_dir=tmp_path / "cache")
    [config] = (tmp_path / "cache").rglob("snapshots/*/config.json")
    (config.parent / PROCESSOR).symlink_to(outside)
    with pytest.raises(RepositoryError, match=f"'{PROCESSOR}' is a link"):
        push_folder(config.parent, Target(f"{repo_id}-again"))


def test_checkpoint_writer_links_to_no_file_that_lies_elsewhere(tmp_path):
    model, writer = tiny_model("vit"), CheckpointWriter()
    writer.write(model, tmp_path / "one")
    move_out(tmp_path / "one", shard(1), tmp_path / "elsewhere")
    manifest = restore(model, tmp_path / "one")
    writer.adopt(tmp_path / "one", manifest)
    writer.write(model, tmp_path / "two")
    copy = tmp_path / "two" / shard(1)
    assert not copy.is_symlink()
    assert not copy.samefile(tmp_path / "elsewhere")
    assert (tmp_path / "two" / shard(2)).samefile(tmp_path / "one" / shard(2))
    load(tmp_path / "two", stage="teacher")


def test_checkpoint_writer_links_to_no_damaged_copy_of_a_model_from_a_repository(copied, tmp_path):
    folder = copied("vit")
    model, writer = load(folder, keep_all=True), CheckpointWriter()
    writer.write(model, tmp_path / "one")
    content = bytearray((tmp_path / "one" / shard(1)).read_bytes())
    content[-1] ^= 1
    (tmp_path / "one" / shard(1)).write_bytes(content)
    writer.write(model, tmp_path / "two")
    load(tmp_path / "two", stage="teacher")


def test_results_of_an_evaluation_are_not_written_over_the_repository(copied):
    from pwl_hf import OverwriteError
    from pwl_hf.evaluation.repositories import check_results_path

    folder = copied("vit")
    (folder / "report.json").write_text("{}")
    for name in (INDEX, "config.json", STUDENT, shard(1), "teacher/../config.json"):
        with pytest.raises(OverwriteError, match="of the repository that is measured"):
            check_results_path(folder / name, folder)
    for path in (folder / "report.json", folder / "new.json"):
        check_results_path(path, folder)
    check_results_path(folder / "config.json", "org/name")
