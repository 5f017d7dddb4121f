"""accelerate's hooks on a model: weights that they keep elsewhere are neither lost nor taken for unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import remove_hook_from_submodules

from pwl_hf import PWLForImageClassification, SaveError, StageError
from tests.tiny import tiny_images

Load = Callable[..., PWLForImageClassification]
CPU = torch.device("cpu")


@pytest.mark.parametrize("way", ["cpu", "disk"])
def test_an_offloaded_model_answers_and_is_neither_moved_nor_saved(load: Load, tmp_path: Path, way: str) -> None:
    model, images = load("vit"), tiny_images("vit")
    model.student.classifier.bias.data += 1
    expected = model(images).logits
    if way == "cpu":
        cpu_offload(model, CPU)
    else:
        disk_offload(model, str(tmp_path / "offloaded"), CPU)
    for move in (model.load_next_stage, lambda: model.set_stage("teacher"), model.stream_stages):
        with pytest.raises(StageError, match=r"accelerate's hooks.*remove_hook_from_submodules"):
            move()
        assert model.stage == 0
        assert torch.equal(model(images).logits, expected)
    with pytest.raises(SaveError, match=r"student\.\S+ cannot be saved: .*accelerate's hooks.*remove_hook"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_the_hooks_all_is_as_before(load: Load, tmp_path: Path) -> None:
    model, images = load("vit"), tiny_images("vit")
    model.student.classifier.bias.data += 1
    expected = model(images).logits
    cpu_offload(model, CPU)
    remove_hook_from_submodules(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(PWLForImageClassification.from_pretrained(tmp_path)(images).logits, expected)
    with pytest.raises(StageError, match="student block 4 was changed"):
        model.set_stage("teacher")
    assert model.load_next_stage() == 1


def test_a_resident_model_changes_its_stage_under_hooks(load: Load) -> None:
    model, images = load("vit", keep_all=True), tiny_images("vit")
    expected = {stage: model(images, sources="T" * stage + "S" * (4 - stage)).logits for stage in range(5)}
    cpu_offload(model, CPU)
    for stage in (1, 4, 0):
        model.set_stage(stage)
        assert torch.equal(model(images).logits, expected[stage])


def test_statistics_of_a_mask_under_hooks_are_refused_rather_than_left_out(load: Load) -> None:
    model = load("resnet", keep_all=True)
    model.set_sources("TSSS")
    expected = model(tiny_images("resnet")).logits
    cpu_offload(model, CPU)
    with pytest.raises(StageError, match="BatchNorm statistics cannot be used"):
        model.set_sources("SSTT")
    remove_hook_from_submodules(model)
    assert torch.equal(model(tiny_images("resnet")).logits, expected)
