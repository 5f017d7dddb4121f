"""The two ends are the original networks, and every path is the same wherever its pieces came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from pwl_hf import PWLForImageClassification, Sources
from tests.tiny import FAMILIES, WITH_ATTENTION, WITH_BATCH_NORM, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]

VARIANTS = [
    pytest.param(family, attention, dtype, id=f"{family}-{attention}-{str(dtype).removeprefix('torch.')}")
    for family in FAMILIES
    for attention in (["eager", "sdpa"] if family in WITH_ATTENTION else ["eager"])
    for dtype in (torch.float32, torch.bfloat16)
]


def plain_teacher(repository: Path, **kwargs: object) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(repository, subfolder="teacher", **kwargs)


@pytest.fixture(scope="module")
def plain_students(saved: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def path_of(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tmp_path_factory.mktemp("students") / model_type
            PWLForImageClassification.from_pretrained(saved(model_type)).student.save_pretrained(made[model_type])
        return made[model_type]

    return path_of


@pytest.mark.parametrize(("model_type", "attention", "dtype"), VARIANTS)
@torch.no_grad()
def test_both_ends_equal_the_plain_networks_bit_for_bit(
    saved: Callable[[str], Path],
    plain_students: Callable[[str], Path],
    model_type: str,
    attention: str,
    dtype: torch.dtype,
) -> None:
    options = {"dtype": dtype, "attn_implementation": attention}
    images = tiny_images(model_type, 3).to(dtype)
    teacher = plain_teacher(saved(model_type), **options)
    student = AutoModelForImageClassification.from_pretrained(plain_students(model_type), **options)
    model = PWLForImageClassification.from_pretrained(saved(model_type), **options)
    assert model.config.teacher_config._attn_implementation == teacher.config._attn_implementation == attention

    at_start = model(images).logits
    assert at_start.dtype == dtype
    assert torch.equal(at_start, student(images).logits)
    for _ in range(4):
        model.load_next_stage()
    assert torch.equal(model(images).logits, teacher(images).logits)
    assert not torch.equal(at_start, model(images).logits)

    direct = PWLForImageClassification.from_pretrained(saved(model_type), stage="teacher", **options)
    assert torch.equal(direct(images).logits, teacher(images).logits)
    model.set_stage(0)
    assert torch.equal(model(images).logits, at_start)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(direct.teacher.state_dict()[name], tensor), name


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_every_stage_up_and_down_equals_the_resident_models(load: Load, model_type: str) -> None:
    images = tiny_images(model_type)
    whole, growing = load(model_type, keep_all=True), load(model_type)
    for stage in (0, 1, 2, 3, 4, 3, 2, 1, 0, 4, 1, "teacher", 0):
        growing.set_stage(stage)
        whole.set_stage(stage)
        assert growing.stage == whole.stage == (4 if stage == "teacher" else stage)
        assert torch.equal(growing(images).logits, whole(images).logits), growing.sources


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_every_mask_fetched_equals_the_resident_models(load: Load, model_type: str) -> None:
    images = tiny_images(model_type)
    whole, growing = load(model_type, keep_all=True), load(model_type)
    answers = []
    for mask in Sources.all(4):
        growing.set_sources(str(mask))
        answers.append(growing(images).logits)
        assert growing.sources == str(mask)
        assert growing.stage == (mask.mask.count("T") if "ST" not in mask.mask else None)
        assert torch.equal(answers[-1], whole(images, sources=str(mask)).logits), mask
        assert torch.equal(answers[-1], growing(images, sources=str(mask)).logits), mask
    assert whole.sources == "SSSS", "forward(sources=) must not change the state"
    assert len({tuple(answer.flatten().tolist()) for answer in answers}) == 16, "every mask is another network"


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_a_model_saved_and_loaded_equals_the_one_in_memory(load: Load, model_type: str) -> None:
    images, original, loaded = tiny_images(model_type), tiny_model(model_type), load(model_type, keep_all=True)
    with_statistics = {"TSSS", "SSTT"} if model_type in WITH_BATCH_NORM else set()
    for mask in map(str, Sources.all(4)):
        same = torch.equal(original(images, sources=mask).logits, loaded(images, sources=mask).logits)
        assert same != (mask in with_statistics), mask


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@torch.no_grad()
def test_any_number_of_stages_ends_at_the_teacher(tmp_path: Path, num_stages: int) -> None:
    images, original = tiny_images("vit"), tiny_model("vit", num_stages)
    original.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(model(images).logits, original.student(images).logits)
    for stage in range(1, num_stages + 1):
        assert model.load_next_stage() == stage
    assert torch.equal(model(images).logits, plain_teacher(tmp_path)(images).logits)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_a_fully_resident_model_routes_through_its_own_networks(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type)
    assert torch.equal(model(images).logits, model.student(images).logits)
    model.set_stage("teacher")
    assert torch.equal(model(images).logits, model.teacher(images).logits)
