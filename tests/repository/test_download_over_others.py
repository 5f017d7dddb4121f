"""`download --local-dir`: what it writes over in its folder, and what it leaves."""

from __future__ import annotations

import pytest
import torch

from pwl_hf import OverwriteError, SaveError
from pwl_hf.downloading import download_stages
from tests.repository.helpers import INDEX, STUDENT, load, logits, publish, shard, tree
from tests.tiny import tiny_model


@pytest.fixture
def pushed(hub, repo_id, saved):
    publish(hub, repo_id, saved("vit"))
    return repo_id


@pytest.mark.parametrize("path", [STUDENT, "config.json", shard(1)])
def test_file_in_a_folder_that_is_no_repository_is_not_written_over(pushed, tmp_path, path):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(OverwriteError, match=f"holds {path}.*--overwrite"):
        download_stages(pushed, 1, local_dir=tmp_path)
    assert tree(tmp_path) == before
    (tmp_path / "notes.safetensors").write_text("mine")
    download_stages(pushed, 1, local_dir=tmp_path, overwrite=True)
    assert (tmp_path / "notes.safetensors").read_text() == "mine"
    load(tmp_path, stage=1)


def test_later_stages_and_later_commits_go_into_the_same_folder(hub, pushed, tmp_path):
    for stage in (0, 2, "teacher"):
        download_stages(pushed, stage, local_dir=tmp_path)
    other = tiny_model("vit", num_stages=2, seed=3)
    other.push_to_hub(pushed)
    download_stages(pushed, "teacher", local_dir=tmp_path)
    other.set_stage(2)
    assert torch.equal(logits(load(tmp_path, stage="teacher")), logits(other))


def test_download_that_was_cut_short_goes_on(pushed, saved, tmp_path, monkeypatch):
    from pwl_hf import downloading

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "write_bytes", fail)
        with pytest.raises(OSError, match="No space"):
            download_stages(pushed, 1, local_dir=tmp_path)
    assert (tmp_path / STUDENT).exists()
    assert not (tmp_path / INDEX).exists()
    download_stages(pushed, 1, local_dir=tmp_path)
    assert torch.equal(logits(load(tmp_path, stage=1)), logits(load(saved("vit"), stage=1)))


def test_copy_that_differs_is_an_error(pushed, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.copyfile", lambda source, target: target.write_bytes(b"something else"))
    with pytest.raises(SaveError, match="was not written: the copy of"):
        download_stages(pushed, 0, local_dir=tmp_path)
    assert not (tmp_path / STUDENT).exists()
    assert not (tmp_path / INDEX).exists()
