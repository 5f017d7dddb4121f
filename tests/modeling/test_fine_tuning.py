"""Other labels for an existing repository, and what a load reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification, Sources, StageError
from tests.tiny import EACH_FAMILY, tiny_images

Load = Callable[..., PWLForImageClassification]
RESET = {"ignore_mismatched_sizes": True, "keep_all": True}


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("kwargs", [{}, {"stage": 2}, {"stage": "teacher"}, {"keep_all": True}])
def test_loading_info_reports_nothing_missing_and_nothing_unexpected(load: Load, model_type: str, kwargs: dict) -> None:
    model, info = load(model_type, output_loading_info=True, **kwargs)
    assert isinstance(model, PWLForImageClassification)
    assert {name: list(found) for name, found in info.items()} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }


def head_names(names: list[str]) -> list[str]:
    return [n for n in names if n.startswith(("teacher.classifier", "student.classifier"))]


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_other_labels_reset_both_heads_and_nothing_else(load: Load, model_type: str) -> None:
    original = load(model_type, keep_all=True).state_dict()
    model, info = load(model_type, num_labels=3, output_loading_info=True, **RESET)
    state = model.state_dict()
    changed = head_names(list(state))
    assert len(changed) == 4
    assert state.keys() == original.keys()
    for name, tensor in state.items():
        if name in changed:
            assert tensor.shape[0] == 3
            assert torch.isfinite(tensor).all()
            assert tensor.abs().max() < 10
        else:
            assert torch.equal(tensor, original[name]), name
    mismatched = {name: (tuple(stored), tuple(now)) for name, stored, now in info["mismatched_keys"]}
    assert sorted(mismatched) == sorted(changed)
    assert all(stored[0] == 5 and now[0] == 3 for stored, now in mismatched.values())
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = tiny_images(model_type)
    for mask in map(str, Sources.all(4)):
        assert model(images, sources=mask).logits.shape == (2, 3)
    for config in (model.config, model.config.teacher_config, model.config.student_config):
        assert config.num_labels == 3
    assert model.num_labels == model.teacher.num_labels == 3


def test_new_heads_are_said_aloud(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "pwl_hf"):
        load("vit", num_labels=5, **RESET)
    assert not caplog.text
    with caplog.at_level("WARNING", "pwl_hf"):
        load("vit", num_labels=3, **RESET)
    for name in ("student.classifier.weight", "student.classifier.bias", "classifier.weight"):
        assert f" {name} has shape [5" in caplog.text
    assert caplog.text.count("drawn at random") == 4


def test_new_heads_are_drawn_from_the_seed(load: Load) -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(load("vit", num_labels=3, **RESET).student.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert 0 < heads[0].std() < 0.1


@pytest.mark.parametrize("model_type", ["vit", "resnet", "swin", "pwl_vgg"])
def test_a_train_step_after_a_reset_works(load: Load, model_type: str) -> None:
    model, images = load(model_type, num_labels=3, **RESET).train(), tiny_images(model_type, 4)
    assert all(p.requires_grad for p in model.student.parameters())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    teacher = {n: t.clone() for n, t in model.teacher.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    labels, losses = torch.tensor([0, 1, 2, 0]), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = sum(model(images, labels=labels, sources=mask).loss for mask in ("SSSS", "TTSS"))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(t, teacher[n]) for n, t in model.teacher.state_dict().items())


def test_a_reset_model_saves_and_loads(load: Load, tmp_path: Path) -> None:
    model, images = load("vit", num_labels=3, **RESET), tiny_images("vit")
    model.set_stage(2)
    expected = model(images).logits
    model.save_pretrained(tmp_path)
    again = PWLForImageClassification.from_pretrained(tmp_path, stage=2)
    assert torch.equal(again(images).logits, expected)
    assert again.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    again.set_stage("teacher")
    assert again(images).logits.shape == (2, 3)


def test_names_of_new_labels_are_kept(load: Load) -> None:
    model = load("vit", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, **RESET)
    assert model.config.id2label == model.student.config.id2label == {0: "cat", 1: "dog"}


def test_other_labels_are_refused_without_both_arguments(load: Load) -> None:
    with pytest.raises(ValueError, match=r"num_labels=3, but the heads have 5 labels.*ignore_mismatched_sizes=True"):
        load("vit", num_labels=3)
    with pytest.raises(ValueError, match=r"num_labels=3, but the heads have 5 labels"):
        load("vit", num_labels=3, keep_all=True)
    with pytest.raises(ValueError, match="resets both heads: load with keep_all=True"):
        load("vit", num_labels=3, ignore_mismatched_sizes=True)


def test_the_same_number_of_labels_resets_nothing(load: Load) -> None:
    original = load("vit", keep_all=True).state_dict()
    model, info = load("vit", num_labels=5, output_loading_info=True, **RESET)
    assert all(torch.equal(t, original[n]) for n, t in model.state_dict().items())
    assert not info["mismatched_keys"]


def test_renamed_labels_need_no_reset(load: Load) -> None:
    names = {i: f"species {i}" for i in range(5)}
    model = load("vit", id2label=names, label2id={n: i for i, n in names.items()})
    assert model.config.id2label == names
    assert model.load_next_stage() == 1


def test_a_reset_head_may_be_in_a_dtype_of_ones_own(load: Load) -> None:
    model = load("vit", num_labels=3, dtype=torch.bfloat16, **RESET)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(tiny_images("vit")).logits.dtype == torch.bfloat16


def test_training_a_grown_model_in_place_is_kept_from_being_lost(load: Load) -> None:
    model = load("vit").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(tiny_images("vit"), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    with pytest.raises(StageError, match="was changed since it was loaded"):
        model.load_next_stage()
