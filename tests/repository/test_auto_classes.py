"""The Auto classes and pipelines of transformers, with the package imported."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    VisionTextDualEncoderConfig,
    ViTImageProcessor,
    pipeline,
)

import pwl_hf
from pwl_hf import PWLConfig, PWLForImageClassification, RepositoryError
from tests.repository.helpers import bodies, load, logits, lookups, publish
from tests.tiny import EACH_FAMILY, tiny_config, tiny_model

RED = Image.new("RGB", (20, 20), "red")


def with_processor(folder, size=16):
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("stage", [0, 2, "teacher"])
def test_auto_model_takes_a_stage(saved, family, stage):
    model = AutoModelForImageClassification.from_pretrained(saved(family), stage=stage)
    assert type(model) is PWLForImageClassification
    expected = load(saved(family), stage=stage)
    assert model.stage == expected.stage
    assert torch.equal(logits(model), logits(expected))


def test_auto_config_reads_ours(saved):
    config = AutoConfig.from_pretrained(saved("pwl_vgg"))
    assert type(config) is PWLConfig
    assert type(config.teacher_config) is pwl_hf.VGGConfig
    assert config.to_json_string() == PWLConfig.from_pretrained(saved("pwl_vgg")).to_json_string()


def test_auto_model_passes_the_other_arguments_on(saved):
    model, info = AutoModelForImageClassification.from_pretrained(
        saved("vit"), stage=1, dtype="bfloat16", attn_implementation="eager", device_map="cpu", output_loading_info=True
    )
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    assert not any(info.values())
    model = AutoModelForImageClassification.from_pretrained(
        saved("vit"), keep_all=True, num_labels=3, ignore_mismatched_sizes=True
    )
    assert logits(model).shape == (2, 3)


@pytest.mark.parametrize("given", [{"variant": "fp16"}, {"tp_plan": "auto"}, {"device_map": {"a": "cpu", "b": "cuda"}}])
def test_auto_model_refuses_what_does_not_apply(saved, given):
    with pytest.raises(ValueError, match=next(iter(given))):
        AutoModelForImageClassification.from_pretrained(saved("vit"), **given)


def test_auto_model_refuses_an_unknown_argument(saved):
    with pytest.raises(TypeError, match="unexpected keyword argument 'banana'"):
        AutoModelForImageClassification.from_pretrained(saved("vit"), banana=1)


def test_auto_model_from_the_hub_asks_once_for_the_commit_and_for_each_file(hub, repo_id, saved, tmp_path):
    publish(hub, repo_id, saved("vit"))
    with hub.record() as requests:
        model = AutoModelForImageClassification.from_pretrained(repo_id, cache_dir=tmp_path)
    assert sorted(bodies(requests)) == ["config.json", "model.safetensors", "pwl_index.json"]
    assert lookups(requests) == [f"GET /api/models/{repo_id}"]
    assert model.load_next_stage() == 1


def test_auto_model_keeps_to_one_commit_when_the_branch_moves_within_the_call(
    hub, repo_id, saved, tmp_path, monkeypatch
):
    publish(hub, repo_id, saved("vit"))
    tiny_model("vit", seed=3).save_pretrained(tmp_path / "new")
    read = PWLConfig.from_dict.__func__

    def moving(cls, *args, **kwargs):
        publish(hub, repo_id, tmp_path / "new")
        return read(cls, *args, **kwargs)

    monkeypatch.setattr(PWLConfig, "from_dict", classmethod(moving))
    model = AutoModelForImageClassification.from_pretrained(repo_id, cache_dir=tmp_path / "cache", stage=1)
    assert torch.equal(logits(model), logits(load(saved("vit"), stage=1)))


def test_from_config_is_fully_resident():
    model = AutoModelForImageClassification.from_config(tiny_config("resnet"))
    assert type(model) is PWLForImageClassification
    model.set_stage("teacher")


@pytest.mark.parametrize("options", [{}, {"model_kwargs": {"stage": 2}}, {"model_kwargs": {"stage": "teacher"}}])
def test_pipeline_takes_a_stage(copied, options):
    folder = with_processor(copied("vit"))
    classify = pipeline("image-classification", model=str(folder), **options)
    stage = options.get("model_kwargs", {}).get("stage", 0)
    expected = load(folder, stage=stage)
    assert classify.model.stage == expected.stage
    answers = classify(RED, top_k=5)
    pixels = ViTImageProcessor.from_pretrained(folder)(RED, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        scores = expected(pixels).logits.softmax(-1)[0]
    assert len(answers) == 5
    for answer in answers:
        assert answer["score"] == pytest.approx(scores[expected.config.label2id[answer["label"]]].item(), abs=1e-5)


def test_pipeline_grows_while_it_is_used(copied):
    folder = with_processor(copied("vit"))
    classify = pipeline("image-classification", model=str(folder), dtype=torch.bfloat16, device="cpu")
    seen = [classify(RED, top_k=1)[0]["score"]]
    for _ in range(4):
        classify.model.load_next_stage()
        assert classify.model.dtype == torch.bfloat16
        seen.append(classify(RED, top_k=1)[0]["score"])
    assert len(set(seen)) > 1


def test_pipeline_of_a_model_and_a_processor(saved, copied):
    folder = with_processor(copied("vit"))
    processor = ViTImageProcessor.from_pretrained(folder)
    classify = pipeline("image-classification", model=load(saved("vit"), stage=1), image_processor=processor)
    assert len(classify([RED, RED], top_k=2)) == 2


def test_teacher_folder_works_in_a_pipeline(copied):
    folder = with_processor(copied("vit"))
    load(folder).save_pretrained(folder)
    classify = pipeline("image-classification", model=str(folder / "teacher"))
    assert type(classify.model).__name__ == "ViTForImageClassification"
    assert len(classify(RED)) == 5


def test_remote_code_is_neither_asked_for_nor_used_with_the_package(saved, monkeypatch):
    """The repository names remote code; the class known to transformers goes before it."""

    def nobody(*args: object) -> str:
        raise AssertionError("asked a question")

    monkeypatch.setattr("builtins.input", nobody)
    for trust in (None, False, True):
        for family in ("vit", "pwl_vgg"):
            model = AutoModelForImageClassification.from_pretrained(saved(family), trust_remote_code=trust, stage=1)
            assert type(model).__module__ == "pwl_hf.modeling.tasks.image_classification"
            assert type(model.config).__module__ == "pwl_hf.modeling.configuration_pwl"
            teacher = AutoModelForImageClassification.from_pretrained(
                saved(family) / "teacher", trust_remote_code=trust
            )
            assert not type(teacher).__module__.startswith("transformers_modules")


def test_other_models_are_loaded_as_ever(saved, tmp_path):
    plain = AutoModelForImageClassification.from_pretrained(saved("vit") / "teacher")
    plain.save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is type(plain)
    assert type(
        AutoConfig.for_model(
            "vision-text-dual-encoder", vision_config={"model_type": "vit"}, text_config={"model_type": "bert"}
        )
    ) is (VisionTextDualEncoderConfig)


def test_config_of_another_model_is_refused_by_ours(saved):
    with pytest.raises(RepositoryError, match="is not a PWL repository"):
        load(saved("vit") / "teacher")
