"""`keep=`: a network that stays whole in memory beside the current route."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification
from tests.repository.helpers import bodies
from tests.tiny import tiny_images, tiny_model

N = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("vit").save_pretrained(tmp_path)
    return tmp_path


def blocks(model: PWLForImageClassification, role: str) -> list[int]:
    return sorted(part.id.number for part in model.parts.resident() if part.id.kind == role)


@torch.no_grad()
def test_the_student_stays_whole_at_every_stage(folder: Path, tmp_path: Path) -> None:
    images, expected = tiny_images("vit"), PWLForImageClassification.from_pretrained(folder)
    first = expected(images).logits
    model = PWLForImageClassification.from_pretrained(folder, keep=("student",))
    for stage in (1, 2, 4, 3, 0, 4):
        model.set_stage(stage)
        expected.set_stage(stage)
        assert torch.equal(model(images).logits, expected(images).logits)
        assert (blocks(model, "student"), blocks(model, "teacher")) == ([1, 2, 3, 4], list(range(1, stage + 1)))
        assert torch.equal(model.student(images).logits, first)
    model.student.save_pretrained(tmp_path / "student")
    assert {part.id.kind for part in model.parts.resident()} == {"teacher", "student"}


@torch.no_grad()
def test_a_stream_leaves_it_there(folder: Path) -> None:
    model = PWLForImageClassification.from_pretrained(folder, keep=("student",), stream=True)
    with model.stream:
        pass
    assert (model.stage, blocks(model, "student")) == (N, [1, 2, 3, 4])


@torch.no_grad()
def test_a_change_of_it_is_no_loss(folder: Path) -> None:
    model = PWLForImageClassification.from_pretrained(folder, keep=("student",))
    model.student.classifier.weight.add_(1)
    changed = model.student(tiny_images("vit")).logits
    model.set_stage("teacher")
    model.set_stage(0)
    assert torch.equal(model(tiny_images("vit")).logits, changed)


def test_the_teacher_may_stay_as_well(folder: Path) -> None:
    model = PWLForImageClassification.from_pretrained(folder, keep=["teacher"])
    assert (model.stage, blocks(model, "teacher")) == (0, [1, 2, 3, 4])
    model.set_stage(2)
    assert (blocks(model, "teacher"), blocks(model, "student")) == ([1, 2, 3, 4], [3, 4])
    both = PWLForImageClassification.from_pretrained(folder, keep=["teacher", "student"])
    assert [part for part in both.parts.resident() if part.role is None] == []


def test_only_what_is_kept_is_fetched(hub, repo_id: str, tmp_path: Path) -> None:
    tiny_model("vit").push_to_hub(repo_id)
    with hub.record() as requests:
        PWLForImageClassification.from_pretrained(repo_id, stage="teacher", keep=("student",), cache_dir=tmp_path)
    weights = {path for path in bodies(requests) if path.endswith(".safetensors")}
    assert weights == {"model.safetensors", *(f"teacher/model-{k:05d}-of-00004.safetensors" for k in range(1, 5))}


@pytest.mark.parametrize("keep", ["student", ("pupil",), [1], [["student"]], None, 3])
def test_what_is_no_network_is_refused(folder: Path, keep: object) -> None:
    with pytest.raises(ValueError, match="keep must be a collection"):
        PWLForImageClassification.from_pretrained(folder, keep=keep)
