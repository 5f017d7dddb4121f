"""An embedder that teacher and student share, in a repository: stored, sent and checked once, and refused by name."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import BertForSequenceClassification
from typer.testing import CliRunner

from pwl_hf import Manifest, PWLForImageClassification, PWLForSequenceClassification, RepositoryError
from pwl_hf.cli import app
from pwl_hf.downloading import download_stages
from pwl_hf.modeling.publishing.model_card import write_card
from pwl_hf.modeling.repository import manifest as manifests
from pwl_hf.modeling.repository.output_folder import paths_of_save
from tests.modeling.driven import texts
from tests.modeling.shared_embedders import EMBEDDER, SHARED, joined, plain
from tests.repository.helpers import (
    INDEX,
    STUDENT,
    bodies,
    edit_bytes,
    edit_json,
    edit_tensors,
    encoder,
    fingerprint_of,
    publish,
    refresh,
    run_python,
    shard,
    tree,
    weights,
)
from tests.tiny import tiny_model

Model = PWLForSequenceClassification


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The folder of a model that shares, or of the same networks that do not; not to be written to."""

    @cache
    def save(share: bool) -> Path:
        folder = tmp_path_factory.mktemp("embedder") / "repo"
        joined(share=share).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def shared(folders: Callable[[bool], Path]) -> Path:
    return folders(True)


@pytest.fixture
def copied(shared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared, tmp_path / "copy")


def entries(folder: Path) -> list[list[dict[str, Any]]]:
    """The files of each stage."""
    return [stage["files"] for stage in json.loads((folder / INDEX).read_text())["stages"]]


def size(folder: Path) -> int:
    return sum(entry["bytes"] for files in entries(folder) for entry in files)


def tensors_of(folder: Path) -> dict[str, list[str]]:
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found[path.relative_to(folder).as_posix()] = list(file.keys())
    return found


# --- What is stored and sent ------------------------------------------------------------------------------------------


def test_it_is_stored_once_and_comes_with_stage_0(folders: Callable[[bool], Path]) -> None:
    shared, apart = folders(True), folders(False)
    index = json.loads((shared / INDEX).read_text())
    assert (index["format_version"], index["min_reader"]) == (4, 4)
    assert [[entry["path"] for entry in files] for files in entries(shared)] == [
        [SHARED, STUDENT],
        *([encoder(k), shard(k)] for k in (1, 2, 3)),
        [shard(4)],
    ]
    entry = entries(shared)[0][0]
    assert (entry["blocks"], entry["student_blocks"], entry["parameters"]) == ([1], [1], EMBEDDER)
    stored = [(path, name) for path, names in tensors_of(shared).items() for name in names if "embeddings" in name]
    assert {path for path, _ in stored} == {SHARED}
    assert len(stored) == 5
    # All of it is less by one embedder, stage 0 no more than with one of its own; but for names and braces.
    assert abs(size(apart) - size(shared) - 4 * EMBEDDER) < 600
    first = {folder: sum(entry["bytes"] for entry in entries(folder)[0]) for folder in (shared, apart)}
    assert abs(first[shared] - first[apart]) < 600
    listed = {e["path"]: e["parameters"] for files in entries(shared) for e in files}
    known = {e["path"]: e["parameters"] for files in entries(apart) for e in files}
    assert [known[path] - listed[path] for path in (STUDENT, shard(1), shard(2))] == [EMBEDDER, EMBEDDER, 0]


def test_without_it_a_save_is_the_bytes_that_it_always_was(folders: Callable[[bool], Path], tmp_path: Path) -> None:
    index, config = ((folders(False) / name).read_text() for name in (INDEX, "config.json"))
    assert (json.loads(index)["format_version"], "student_blocks" in index) == (1, False)
    assert "share_embedder" not in config
    # One that shared, joined again without it.
    model = Model.from_pretrained(folders(True), keep_all=True)
    apart = Model.from_teacher_student(model.teacher, plain()[1])
    apart.save_pretrained(tmp_path)
    assert {p: c for p, c in weights(tmp_path).items() if p.startswith(("teacher/", STUDENT))} == {
        p: c for p, c in weights(folders(False)).items() if p.startswith(("teacher/", STUDENT))
    }


@torch.no_grad()
def test_the_teacher_is_a_plain_checkpoint(shared: Path) -> None:
    index = json.loads((shared / "teacher/model.safetensors.index.json").read_text())
    files = {index["weight_map"][name] for name in index["weight_map"] if "embeddings" in name}
    assert files == {Path(SHARED).name}
    teacher = BertForSequenceClassification.from_pretrained(shared / "teacher")
    assert torch.equal(teacher(**texts()).logits, plain()[0](**texts()).logits)


@pytest.mark.parametrize("stage", [0, 1, 3, 4, None])
def test_a_save_from_any_stage_is_the_same_bytes(shared: Path, tmp_path: Path, stage: int | None) -> None:
    model = Model.from_pretrained(shared, **({"keep_all": True} if stage is None else {"stage": stage}))
    model.save_pretrained(tmp_path)
    assert tree(tmp_path) == tree(shared)


@torch.no_grad()
def test_each_stage_fetches_it_once(hub: Any, repo_id: str, shared: Path, tmp_path: Path) -> None:
    publish(hub, repo_id, shared)
    of_stage = {
        0: [STUDENT],
        2: [STUDENT, shard(1), shard(2), encoder(2)],
        4: [shard(k) for k in (1, 2, 3, 4)],
    }
    for stage, files in of_stage.items():
        with hub.record() as requests:
            model = Model.from_pretrained(repo_id, stage=stage, cache_dir=tmp_path / str(stage))
        assert sorted(set(bodies(requests)) - {"config.json", INDEX}) == sorted([SHARED, *files])
        assert torch.equal(model(**texts()).logits, joined()(**texts(), sources=model.sources).logits)
    with hub.record() as requests:
        model = Model.from_pretrained(repo_id, cache_dir=tmp_path / "stream")
        with model.stream_stages():
            pass
    assert [path for path in bodies(requests) if path.endswith(".safetensors")].count(SHARED) == 1
    assert torch.equal(model(**texts()).logits, plain()[0](**texts()).logits)


@torch.no_grad()
def test_what_was_downloaded_for_stage_0_answers_alone(hub: Any, repo_id: str, shared: Path, tmp_path: Path) -> None:
    publish(hub, repo_id, shared)
    place, bytes_, count = download_stages(repo_id, 0, local_dir=tmp_path / "stage-0", cache_dir=tmp_path / "cache")
    assert (bytes_, count) == (sum(entry["bytes"] for entry in entries(shared)[0]), 2)
    model = Model.from_pretrained(place)
    assert torch.equal(model(**texts()).logits, plain()[1](**texts()).logits)


@torch.no_grad()
def test_a_push_sends_it_once_and_copies_what_is_there(hub: Any, repo_id: str, shared: Path, tmp_path: Path) -> None:
    joined().push_to_hub(repo_id)
    pushed = hub.store.files(repo_id)
    assert pushed[SHARED] == (shared / SHARED).read_bytes()
    assert {path for path in pushed if path.endswith(".safetensors")} == set(tensors_of(shared))
    model = Model.from_pretrained(repo_id, cache_dir=tmp_path)
    model.push_to_hub(f"{repo_id}-again")
    assert hub.store.files(f"{repo_id}-again")[SHARED] == pushed[SHARED]


def test_info_and_the_card_say_what_it_costs(shared: Path, folders: Callable[[bool], Path], copied: Path) -> None:
    told = "teacher and student share an embedder of 6.5 kB, which comes with stage 0"
    found = CliRunner().invoke(app, ["info", str(shared)])
    assert found.exit_code == 0, found.output
    assert told in found.output
    assert "share an embedder" not in CliRunner().invoke(app, ["info", str(folders(False))]).output
    assert "Teacher and student share an embedder (6.5 kB)" in write_card(copied).read_text()


def test_its_path_is_known_before_a_save(shared: Path, tmp_path: Path) -> None:
    assert SHARED in paths_of_save(4)
    (tmp_path / "teacher").mkdir()
    (tmp_path / SHARED).write_text("mine")
    with pytest.raises(OSError, match="shared-with-student"):
        Model.from_pretrained(shared).save_pretrained(tmp_path)
    assert (tmp_path / SHARED).read_text() == "mine"


def test_a_save_over_one_that_shared_removes_the_file(copied: Path, folders: Callable[[bool], Path]) -> None:
    Model.from_pretrained(folders(False)).save_pretrained(copied)
    assert weights(copied) == weights(folders(False))


def test_another_schedule_leaves_it_at_stage_0(shared: Path) -> None:
    before = Manifest.from_json((shared / INDEX).read_bytes())
    after = before.with_schedule(manifests.Schedule.of(["SSSS", "SSST", "SSTT", "STTT", "TTTT"]))
    assert SHARED in {entry.path for entry in after.stages[0].files}
    assert (after.format_version, after.fingerprint) == (4, before.fingerprint)
    assert Manifest.from_json(after.to_json()) == after
    for mask in after.schedule:
        assert SHARED in {entry.path for entry in after.files_for(mask)}


# --- What is refused --------------------------------------------------------------------------------------------------


def test_an_older_reader_says_upgrade(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "FORMAT_VERSION", 3)
    with pytest.raises(RepositoryError, match="format version 4, this one reads up to 3: upgrade pwl-hf"):
        Model.from_pretrained(shared)


def change_entry(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def change(index: dict[str, Any]) -> None:
        entry = next(entry for entry in index["stages"][0]["files"] if entry["path"] == SHARED)
        entry.update(fields)
        index["fingerprint"] = fingerprint_of(index)

    return change


def move_to(place: int | None) -> Callable[[dict[str, Any]], None]:
    def change(index: dict[str, Any]) -> None:
        entry = index["stages"][0]["files"].pop(0)
        (index["other_files"] if place is None else index["stages"][place]["files"]).append(entry)

    return change


def on_the_student(index: dict[str, Any]) -> None:
    index["stages"][0]["files"][1]["student_blocks"] = [1]


def of_an_older_format(index: dict[str, Any]) -> None:
    index["min_reader"] = 3


def without_it(index: dict[str, Any]) -> None:
    index["stages"][0]["files"].pop(0)
    index["fingerprint"] = fingerprint_of(index)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (change_entry(student_blocks=[2]), r"\[1\] and the student's \[2\], by config.json it is by \[1\] and the st"),
        (change_entry(student_blocks=[1, 2]), r"and the student's \[1, 2\], by config.json it is by \[1\] and the st"),
        (change_entry(blocks=[1, 2]), r"by blocks \[1, 2\] and the student's \[1\], by config.json it is by \[1\]"),
        (change_entry(blocks=[]), "must name the blocks that share it"),
        (change_entry(student_blocks=[]), "in stage 0, it belongs to stage 1"),
        (change_entry(student_blocks=[0]), r"shared by blocks \[0\], which must be blocks from 1 to 4"),
        (change_entry(student_blocks=[5]), r"shared by blocks \[5\], which must be blocks from 1 to 4"),
        (change_entry(student_blocks=[1, 1]), r"shared by blocks \[1, 1\], which must be"),
        (change_entry(student_blocks="1"), "student_blocks must be list, got '1'"),
        (change_entry(student_blocks=[True]), "student_blocks must be int, got True"),
        (change_entry(student_blocks=[[1]]), "student_blocks must be int"),
        (change_entry(path="teacher/shared-another.safetensors"), "has no file 'teacher/shared-another"),
        (change_entry(path="../shared-with-student.safetensors"), "must be a relative path"),
        (change_entry(path="shared-with-student.safetensors"), "must name the blocks that share it, and no other file"),
        (change_entry(bytes=1), "has .* bytes"),
        (change_entry(sha256="0" * 64), "sha256"),
        (move_to(1), "in stage 1, it belongs to stage 0"),
        (move_to(None), "in other_files, it belongs to stage 0"),
        (on_the_student, "must name the blocks that share it, and no other file may"),
        (of_an_older_format, "in stage 0, it belongs to stage 1"),
        (without_it, "does not list 'teacher/shared-with-student.safetensors'"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_is_refused(copied: Path, change: Callable[[dict[str, Any]], None], why: str) -> None:
    edit_json(copied / INDEX, change)
    fingerprint = json.loads((copied / INDEX).read_text())["fingerprint"]
    edit_json(copied / "config.json", lambda config: config.update(fingerprint=fingerprint))
    with pytest.raises(RepositoryError, match=why):
        Model.from_pretrained(copied)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.__delitem__("bert.embeddings.LayerNorm.bias"), "lacks tensor 'bert.embeddings.LayerNorm.bias'"),
        (lambda t: t.update(more=torch.zeros(1)), "holds tensor 'more', which does not belong there"),
        (
            lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.zeros(8)}),
            r"'bert.embeddings.LayerNorm.bias' has shape \[8\], expected \[16\]",
        ),
        (lambda t: t.update({k: v.half() for k, v in t.items()}), "has dtype F16, expected F32"),
    ],
)
def test_a_file_of_other_tensors_is_refused(copied: Path, change: Callable[[dict[str, Any]], Any], why: str) -> None:
    edit_tensors(copied, SHARED, change)
    with pytest.raises(RepositoryError, match=f"'{SHARED}'.* {why}"):
        Model.from_pretrained(copied)


def test_a_file_that_is_damaged_or_gone_is_refused(copied: Path) -> None:
    edit_bytes(copied, SHARED, lambda content: content[:-1] + bytes([content[-1] ^ 1]), honest=False)
    with pytest.raises(RepositoryError, match=f"'{SHARED}' has sha256"):
        Model.from_pretrained(copied)
    (copied / SHARED).unlink()
    with pytest.raises(RepositoryError, match=f"has no file '{SHARED}'"):
        Model.from_pretrained(copied)


def test_a_config_that_disagrees_is_refused(copied: Path, folders: Callable[[bool], Path], tmp_path: Path) -> None:
    edit_json(copied / "config.json", lambda config: {k: v for k, v in config.items() if k != "share_embedder"})
    with pytest.raises(RepositoryError, match=f"'{SHARED}' is no file of this format|lacks tensor 'student.bert.emb"):
        Model.from_pretrained(copied)
    other = shutil.copytree(folders(False), tmp_path / "other")
    edit_json(other / "config.json", lambda config: config.update(share_embedder=True))
    with pytest.raises(RepositoryError, match=f"does not list '{SHARED}'|which does not belong there"):
        Model.from_pretrained(other)


@torch.no_grad()
def test_a_teacher_of_another_embedder_is_refused_before_it_is_built(copied: Path) -> None:
    """What config.json alone does not tell is seen on the teacher, which a first answer does not build."""
    edit_json(copied / "config.json", lambda config: config["teacher_config"].update(max_position_embeddings=41))
    model = Model.from_pretrained(copied)
    answer = model(**texts()).logits
    with pytest.raises(RepositoryError, match=r"needs embedders that are built alike, .*Embedding\(41, 16\)"):
        model.load_next_stage()
    assert model.stage == 0
    assert torch.equal(model(**texts()).logits, answer)


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_networks_that_could_not_share_are_refused(copied: Path, kind: str) -> None:
    tiny_model(kind).save_pretrained(copied, overwrite=True)

    def shares(config: dict[str, Any]) -> None:
        config["share_embedder"] = True
        if kind == "resnet":
            config["student_config"] = config["teacher_config"]
            config["student_cuts"] = config["teacher_cuts"]

    edit_json(copied / "config.json", shares)
    with pytest.raises(ValueError, match="running_mean" if kind == "resnet" else "networks of one width, got 8 for"):
        PWLForImageClassification.from_pretrained(copied)


@torch.no_grad()
def test_plain_transformers_opens_it_by_its_standalone_code(shared: Path, fresh_env: Any, tmp_path: Path) -> None:
    Model.from_pretrained(shared).save_pretrained(tmp_path / "code", remote_code="standalone")
    torch.save(texts(), tmp_path / "inputs.pt")
    printed = run_python(
        "import json, torch\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        f"model = Auto.from_pretrained({str(tmp_path / 'code')!r}, trust_remote_code=True)\n"
        f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        "found = []\n"
        "for stage in (0, 1, 4):\n"
        "    model.set_stage(stage)\n"
        "    found.append(model(**inputs).logits.tolist())\n"
        "print(json.dumps(found))\n",
        fresh_env,
        tmp_path,
        without_package=True,
        stdin="",
    )
    for found, mask in zip(json.loads(printed.splitlines()[-1]), ("SSSS", "TSSS", "TTTT"), strict=True):
        torch.testing.assert_close(torch.tensor(found), joined()(**texts(), sources=mask).logits)


# --- Saves that are killed --------------------------------------------------------------------------------------------


def _save_for_ever(folder: str) -> None:
    models = [joined(), joined(share=False)]
    Path(folder, "started").touch()
    while True:
        for model in models:
            model.save_pretrained(Path(folder, "repo"))


@torch.no_grad()
@pytest.mark.parametrize("seconds", [0.02, 0.06, 0.13])
def test_a_save_that_is_killed_leaves_one_model_or_what_is_refused(tmp_path: Path, seconds: float) -> None:
    """With a model that shares and one that does not over each other, the shared file comes and goes."""
    torch.set_num_threads(1)
    child = get_context("fork").Process(target=_save_for_ever, args=(str(tmp_path),), daemon=True)
    child.start()
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(seconds)
    assert child.is_alive()
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    folder, expected = tmp_path / "repo", plain()
    for stage, network in ((0, expected[1]), ("teacher", expected[0])):
        try:
            model = Model.from_pretrained(folder, stage=stage)
        except (RepositoryError, FileNotFoundError):
            continue
        assert torch.equal(model(**texts()).logits, network(**texts()).logits)
    joined().save_pretrained(folder)
    assert set(weights(folder)) == {*tensors_of(folder), INDEX}
    assert torch.equal(Model.from_pretrained(folder)(**texts()).logits, expected[1](**texts()).logits)


def test_refreshed_hashes_alone_are_read(copied: Path) -> None:
    """The control of the tests above: the same file under its own hash is taken."""
    edit_tensors(copied, SHARED, lambda tensors: tensors["bert.embeddings.LayerNorm.bias"].add_(1))
    refresh(copied)
    model = Model.from_pretrained(copied, stage=1)
    assert torch.allclose(model.teacher.bert.embeddings.LayerNorm.bias, plain()[0].bert.embeddings.LayerNorm.bias + 1)
