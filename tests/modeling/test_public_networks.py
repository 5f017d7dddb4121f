"""`model.teacher` and `model.student`: plain transformers models, saved whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from pwl_hf import PWLForImageClassification, StageError
from pwl_hf.modeling.families.registry import FAMILIES as REGISTERED
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "*.pt")


def weight_files(folder: Path) -> list[Path]:
    return [found for pattern in WEIGHT_FILES for found in folder.rglob(pattern)]


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("role", ["teacher", "student"])
@torch.no_grad()
def test_a_complete_network_saves_a_plain_checkpoint(load: Load, tmp_path: Path, model_type: str, role: str) -> None:
    model, images = load(model_type, stage={"teacher": 4, "student": 0}[role]), tiny_images(model_type)
    network = getattr(model, role)
    assert type(network) is REGISTERED[model_type].model_class()
    network.save_pretrained(tmp_path)
    plain, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(plain) is type(network)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert torch.equal(plain(images).logits, model(images).logits)
    assert plain.config.id2label == model.config.id2label


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_saving_an_incomplete_network_raises_and_writes_nothing(load: Load, tmp_path: Path, model_type: str) -> None:
    for stage, role in ((0, "teacher"), (1, "teacher"), (3, "teacher"), (1, "student"), (4, "student")):
        network = getattr(load(model_type, stage=stage), role)
        with pytest.raises(StageError, match=rf"block \d of the {role} is not resident.*keep_all=True"):
            network.save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(StageError):
            network.state_dict()


def test_the_inner_model_of_an_incomplete_network_is_not_saved_with_holes(load: Load, tmp_path: Path) -> None:
    model = load("vit", stage=1)
    for role in ("teacher", "student"):
        with pytest.raises(StageError, match="is not resident"):
            getattr(model, role).base_model.save_pretrained(tmp_path)
        assert weight_files(tmp_path) == []


def test_the_whole_models_state_dict_is_what_is_resident(load: Load) -> None:
    model = load("vit", stage=2)
    prefixes = {name.split(".")[0] for name in model.state_dict()}
    assert prefixes == {"teacher", "student", "encoders"}
    assert all(not t.is_meta for t in model.state_dict().values())


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_kept_model_saves_both_from_any_stage(load: Load, tmp_path: Path, role: str) -> None:
    model = load("resnet", keep_all=True)
    model.set_stage(2)
    getattr(model, role).save_pretrained(tmp_path)
    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    images = tiny_images("resnet")
    assert torch.equal(plain(images).logits, getattr(model, role)(images).logits)


def test_a_teacher_that_grew_block_by_block_is_saved_as_the_original(load: Load, tmp_path: Path) -> None:
    original, model = tiny_model("swin"), load("swin")
    for _ in range(4):
        model.load_next_stage()
    original.teacher.save_pretrained(tmp_path / "original")
    model.teacher.save_pretrained(tmp_path / "grown")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("original", "grown"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_network_that_came_back_is_complete_again(load: Load, tmp_path: Path) -> None:
    model = load("vit", stage=3)
    with pytest.raises(StageError):
        model.student.save_pretrained(tmp_path)
    model.set_stage(0)
    model.student.save_pretrained(tmp_path)
    assert weight_files(tmp_path)
