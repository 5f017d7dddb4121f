"""Files that belong to a save and hold no weights: they go where the weights go, and not on with others."""

from __future__ import annotations

import json

import pytest
import torch

from pwl_hf import OverwriteError, RepositoryError
from pwl_hf.modeling.publishing.saving import write_attachments
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.modeling.repository.output_folder import _NOTE, UNFINISHED_FILE
from tests.repository.helpers import INDEX, load, tree
from tests.tiny import tiny_images

GRAPHS = {"onnx/student.onnx": b"a graph", "onnx/index.json": b"{}"}


@pytest.fixture
def attached(copied):
    folder = copied("vit")
    write_attachments(folder, GRAPHS)
    return folder


def attachments(folder):
    return {entry.path for entry in Manifest.from_json((folder / INDEX).read_text()).attachments}


def test_they_are_listed_with_size_and_hash_and_are_no_weights(attached, saved):
    index = json.loads((attached / INDEX).read_text())
    plain = json.loads((saved("vit") / INDEX).read_text())
    assert (index["format_version"], index["min_reader"]) == (2, 2)
    assert [(entry["path"], entry["bytes"]) for entry in index["attachments"]] == [
        ("onnx/student.onnx", 7),
        ("onnx/index.json", 2),
    ]
    assert index["fingerprint"] == plain["fingerprint"]
    assert torch.equal(load(attached)(tiny_images("vit")).logits, load(saved("vit"))(tiny_images("vit")).logits)


def test_they_go_along_with_the_same_weights(attached, tmp_path):
    load(attached, stage=2).save_pretrained(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(attached)


def test_weights_that_were_changed_drop_them(attached, tmp_path):
    model = load(attached, keep_all=True)
    with torch.no_grad():
        model.student.classifier.weight.add_(1)
    model.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other" / "onnx").exists()
    model.save_pretrained(attached)
    assert attachments(attached) == set()
    assert not any(attached.rglob("*.onnx"))
    assert json.loads((attached / INDEX).read_text())["format_version"] == 1


def test_another_dtype_drops_them(attached, tmp_path):
    load(attached).to(torch.float64).save_pretrained(tmp_path / "wide")
    assert attachments(tmp_path / "wide") == set()


def test_other_stages_drop_them_and_this_is_said(hub, repo_id, attached, tmp_path, caplog):
    load(attached).push_to_hub(repo_id)
    model = load(attached)
    model.set_schedule(["SSSS", "SSTT", "TTTT"])
    model.save_pretrained(tmp_path / "other")
    assert "without the graphs" in caplog.text
    assert attachments(tmp_path / "other") == set()
    assert not (tmp_path / "other" / "onnx").exists()
    model.push_to_hub(repo_id)
    assert not {path for path in hub.store.files(repo_id) if path.startswith("onnx/")}
    assert attachments(attached) == GRAPHS.keys()
    model.save_pretrained(attached)
    assert attachments(attached) == set()


def test_a_push_sends_them_and_one_of_other_weights_removes_them(hub, repo_id, attached, tmp_path):
    load(attached).push_to_hub(repo_id)
    model = load(repo_id, cache_dir=tmp_path / "cache")
    model.save_pretrained(tmp_path / "back")
    assert {path: (tmp_path / "back" / path).read_bytes() for path in GRAPHS} == GRAPHS
    other = f"{repo_id}-copy"
    model.push_to_hub(other)
    assert {path: hub.store.files(other).get(path) for path in GRAPHS} == GRAPHS
    with torch.no_grad():
        model.student.classifier.weight.add_(1)
    model.push_to_hub(repo_id)
    assert not {path for path in hub.store.files(repo_id) if path.startswith("onnx/")}


def test_new_ones_take_the_place_of_old_ones(attached):
    write_attachments(attached, {"onnx/teacher-1.onnx": b"another"})
    assert attachments(attached) == {"onnx/teacher-1.onnx"}
    assert [path.name for path in attached.rglob("*.onnx")] == ["teacher-1.onnx"]


def test_a_file_of_the_users_is_not_written_over(copied, tmp_path):
    folder = copied("vit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "student.onnx").write_bytes(b"mine")
    before = tree(folder)
    with pytest.raises(OverwriteError, match=r"holds onnx/student\.onnx.*: move them away, or attach under other"):
        write_attachments(folder, GRAPHS)
    assert tree(folder) == before


def test_saving_where_a_file_of_the_users_lies_is_refused(attached, copied, tmp_path):
    target = tmp_path / "target"
    load(attached).save_pretrained(target)
    (target / "onnx" / "own.onnx").write_bytes(b"mine")
    with torch.no_grad():
        model = load(attached, keep_all=True)
        model.student.classifier.weight.add_(1)
    model.save_pretrained(target)
    assert [path.name for path in (target / "onnx").iterdir()] == ["own.onnx"]


def test_a_damaged_one_is_not_handed_on(attached, tmp_path):
    (attached / "onnx" / "student.onnx").write_bytes(b"spoiled")
    model = load(attached)
    assert model.load_next_stage() == 1
    with pytest.raises(RepositoryError, match=r"onnx/student\.onnx"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("path", ["../a.onnx", "/a.onnx", "a.py", "model.safetensors", "a\\b.onnx", "a\x1b.onnx"])
def test_paths_that_cannot_be_are_refused(attached, path):
    before = tree(attached)
    with pytest.raises(RepositoryError, match="must be a relative path"):
        write_attachments(attached, {path: b""})
    assert tree(attached) == before
    index = json.loads((attached / INDEX).read_text())
    index["attachments"][0]["path"] = path
    (attached / INDEX).write_text(json.dumps(index))
    with pytest.raises(RepositoryError, match="must be a relative path"):
        load(attached)


@pytest.mark.parametrize("path", ["config.json", INDEX, "preprocessor_config.json", "own.json", "teacher/config.json"])
def test_one_among_the_configs_is_refused(copied, path):
    folder = copied("vit")
    (folder / "own.json").write_text("mine")
    before = tree(folder)
    with pytest.raises(RepositoryError, match="so put it into another folder, such as onnx/"):
        write_attachments(folder, {path: b"{}"})
    assert tree(folder) == before


def test_they_are_attached_to_a_folder(tmp_path):
    with pytest.raises(RepositoryError, match="nowhere is no folder: save the model there first"):
        write_attachments(tmp_path / "nowhere", GRAPHS)


def test_those_that_came_or_went_since_the_model_was_loaded_are_known(copied, tmp_path):
    folder = copied("vit")
    model = load(folder)
    write_attachments(folder, GRAPHS)
    before = tree(folder)
    model.save_pretrained(tmp_path / "other")
    model.save_pretrained(folder)
    assert tree(folder) == tree(tmp_path / "other") == before
    write_attachments(folder, {})
    model.save_pretrained(folder)
    assert attachments(folder) == set()


def test_a_note_of_a_killed_save_removes_no_more_than_saves_write(copied):
    folder = copied("vit")
    (folder / "precious.pt").write_bytes(b"mine")
    (folder / "stale.onnx").write_bytes(b"a killed save's")
    (folder / UNFINISHED_FILE).write_text(f"{_NOTE}precious.pt\nstale.onnx\n")
    load(folder).save_pretrained(folder)
    assert (folder / "precious.pt").read_bytes() == b"mine"
    assert not (folder / "stale.onnx").exists()


def test_one_that_is_listed_twice_is_refused(attached):
    index = json.loads((attached / INDEX).read_text())
    index["attachments"].append(index["attachments"][0])
    (attached / INDEX).write_text(json.dumps(index))
    with pytest.raises(RepositoryError, match=r"lists 'onnx/student\.onnx' more than once"):
        load(attached)
