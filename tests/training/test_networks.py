"""Teachers and students from names, configs and sizes, and the processors of their images."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, SwinConfig, ViTConfig, ViTImageProcessorPil

from pwl_hf import PWLForImageClassification, RepositoryError, VGGConfig
from pwl_hf.training.networks.building import (
    derived_config,
    fresh,
    labels_of,
    load_network,
    new_student,
    new_teacher,
    read_config,
    with_labels,
)
from pwl_hf.training.networks.network_arguments import NetworkArguments, TeacherArguments
from pwl_hf.training.networks.presets import PRESETS, preset_overrides
from pwl_hf.training.networks.processing import image_processor
from tests.tiny import EACH_FAMILY, tiny_images, tiny_pair

NAMES = ["ant", "bee", "cat", "dog", "elk"]


def arguments(**kwargs: object) -> NetworkArguments:
    return NetworkArguments(**{"teacher": "teacher", **kwargs})


# --- Sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_of_every_family_joins_with_its_teacher(model_type, preset):
    teacher, _ = tiny_pair(model_type)
    student = new_student(arguments(student_preset=preset), teacher, None)
    stages = min(len(getattr(student.config, "depths", [0] * student.config.to_dict().get("num_hidden_layers", 4))), 4)
    model = PWLForImageClassification.from_teacher_student(fresh(teacher), student, num_stages=stages).eval()
    assert model(tiny_images(model_type)).logits.shape == (2, 5)
    sizes = {role: sum(p.numel() for p in getattr(model, role).parameters()) for role in ("teacher", "student")}
    assert sizes["student"] < sizes["teacher"]


@pytest.mark.parametrize(
    ("teacher", "preset", "expected"),
    [
        (
            ViTConfig(),
            "slim",
            {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 6, "intermediate_size": 768},
        ),
        (ResNetConfig(), "half-depth", {"depths": [2, 2, 3, 2], "hidden_sizes": [256, 512, 1024, 2048]}),
        (ResNetConfig(), "half-width", {"depths": [3, 4, 6, 3], "hidden_sizes": [128, 256, 512, 1024]}),
        (SwinConfig(), "half", {"embed_dim": 64, "num_heads": [2, 2, 4, 8], "depths": [1, 1, 3, 1]}),
        (VGGConfig(), "quarter", {"depths": [1, 1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128, 128]}),
    ],
)
def test_preset_sizes(teacher, preset, expected):
    found = preset_overrides(preset, teacher)
    assert {name: found[name] for name in expected} == expected


def test_unknown_preset_names_those_that_exist():
    with pytest.raises(ValueError, match=r"student_preset must be one of half-depth, .*, got 'tiny'"):
        new_student(arguments(student_preset="tiny"), ViTConfig(), None)


def test_overrides_come_after_the_preset_and_labels_are_the_teacher_s():
    teacher, _ = tiny_pair("vit")
    given = arguments(student_preset="half-depth", student_config_overrides=["num_hidden_layers=2", "hidden_act=relu"])
    config = new_student(given, teacher, NAMES).config
    assert (config.num_hidden_layers, config.hidden_act, config.hidden_size) == (2, "relu", teacher.hidden_size)
    assert config.id2label == dict(enumerate(NAMES))
    assert config.label2id == {name: i for i, name in enumerate(NAMES)}
    assert teacher.num_hidden_layers == 8


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_derived_config_follows_in_what_depends(model_type):
    teacher, student = tiny_pair(model_type)
    name = "num_hidden_layers" if model_type in ("vit", "deit", "dinov2") else "depths"
    derived = derived_config(teacher, {name: getattr(student, name)})
    assert getattr(derived, "stage_names", None) == getattr(student, "stage_names", None)
    same = derived_config(teacher, {}).to_dict()
    assert same == {key: teacher.to_dict()[key] for key in same}


def test_unknown_override_is_refused_by_name():
    with pytest.raises(ValueError, match="a config of model_type 'vit' has no 'depth' to be set"):
        new_student(arguments(student_config_overrides=["depth=3"]), ViTConfig(), None)


# --- Names ----------------------------------------------------------------------------------------------------------


def test_student_from_a_json_file_has_its_size_and_the_teacher_s_labels(tmp_path):
    teacher, _ = tiny_pair("pwl_vgg")
    (tmp_path / "small.json").write_text(json.dumps({"model_type": "pwl_vgg", "hidden_sizes": [3], "depths": [1]}))
    config = new_student(arguments(student=str(tmp_path / "small.json")), teacher, NAMES).config
    assert (config.hidden_sizes, config.num_labels) == ([3], 5)
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(ValueError, match="must be a config with a model_type"):
        read_config(str(tmp_path / "wrong.json"))


def test_student_with_weights_keeps_them(tmp_path):
    teacher, student = tiny_pair("vit")
    saved = fresh(student)
    saved.save_pretrained(tmp_path / "student")
    loaded = new_student(arguments(student=str(tmp_path / "student")), teacher, NAMES)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(ValueError, match="student_config_overrides do not go with the weights"):
        new_student(
            arguments(student=str(tmp_path / "student"), student_config_overrides=["hidden_size=8"]), teacher, NAMES
        )


def test_network_from_the_hub_is_found(hub, repo_id):
    fresh(tiny_pair("resnet")[1]).push_to_hub(repo_id)
    assert load_network(repo_id, NAMES, replace_head=False).config.model_type == "resnet"
    assert isinstance(image_processor(repo_id, tiny_pair("resnet")[1], 64), ViTImageProcessorPil)


def test_other_number_of_labels_is_refused_or_gets_a_fresh_head(tmp_path, caplog):
    saved = fresh(tiny_pair("vit")[1])
    saved.save_pretrained(tmp_path / "five")
    with pytest.raises(ValueError, match=r"has 5 labels, the data has 2: fine-tune it with train_teacher\.py"):
        load_network(str(tmp_path / "five"), ["a", "b"], replace_head=False)
    with caplog.at_level(logging.INFO, "pwl_hf.training"):
        network = new_teacher(TeacherArguments(model=str(tmp_path / "five")), ["a", "b"])
    assert "its head is fresh" in caplog.text
    assert network.config.id2label == {0: "a", 1: "b"}
    assert network.classifier.weight.shape[0] == 2
    assert torch.equal(network.vit.layernorm.weight, saved.vit.layernorm.weight)
    assert torch.equal(
        network.vit.embeddings.patch_embeddings.projection.weight,
        saved.vit.embeddings.patch_embeddings.projection.weight,
    )


def test_student_and_fine_tuned_network_need_a_head_unless_a_new_one_is_asked_for(tmp_path):
    teacher, student = tiny_pair("vit")
    fresh(student).vit.save_pretrained(tmp_path)
    path, names = str(tmp_path), ["a", "b", "c"]
    for build in (
        lambda **kwargs: new_student(arguments(student=path, **kwargs), teacher, names),
        lambda **kwargs: new_teacher(TeacherArguments(model=path, **kwargs), names),
    ):
        with pytest.raises(RepositoryError, match=r"lacks classifier\.bias, classifier\.weight.*allow_new_head"):
            build()
        assert build(allow_new_head=True).classifier.weight.shape == (3, 16)
    config = with_labels(student, names)
    config.save_pretrained(tmp_path)  # The number of labels is right, the head is still not there.
    with pytest.raises(RepositoryError, match=r"the student .* lacks classifier"):
        new_student(arguments(student=path), teacher, names)
    with pytest.raises(RepositoryError, match=r"the teacher .* lacks classifier"):
        load_network(path, names, replace_head=False)


def test_only_the_head_is_replaced_for_other_labels(tmp_path):
    fresh(tiny_pair("vit")[1]).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {n: t[:, :9].clone() if "position" in n else t for n, t in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(RepositoryError, match=r"another shape of vit\.embeddings\.position_embeddings"):
        new_teacher(TeacherArguments(model=str(tmp_path), allow_new_head=True), ["a", "b"])


def test_new_head_of_nothing_is_refused():
    with pytest.raises(ValueError, match="allow_new_head goes with student"):
        arguments(student_preset="slim", allow_new_head=True)
    with pytest.raises(ValueError, match="allow_new_head goes with model"):
        TeacherArguments(model_type="vit", allow_new_head=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "has problem_type 'multi_label_classification'"),
        ({"problem_type": "regression"}, "has problem_type 'regression'"),
        ({"id2label": {0: "cat"}, "label2id": {"cat": 0}}, "has num_labels 1"),
    ],
)
def test_network_that_does_not_choose_one_label_of_several_is_refused_by_name(tmp_path, changes, message):
    config = derived_config(tiny_pair("vit")[1], changes)
    fresh(config).save_pretrained(tmp_path)
    for label_names in (labels_of(config), None):
        with pytest.raises(ValueError, match=f"{tmp_path}.*{message}.*need one label of several"):
            load_network(str(tmp_path), label_names, replace_head=False)
    # Of a fresh head the old one's problem says nothing.
    network = load_network(str(tmp_path), ["a", "b"], replace_head=True)
    assert (network.config.num_labels, network.config.problem_type) == (2, None)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_teacher_of_every_family_has_the_data_s_labels(model_type, tmp_path):
    config, _ = tiny_pair(model_type)
    config.save_pretrained(tmp_path)
    network = new_teacher(TeacherArguments(config=str(tmp_path)), ["a", "b", "c"])
    assert network.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert network.eval()(tiny_images(model_type)).logits.shape == (2, 3)


def test_family_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="model_type 'perceiver' cannot be cut"):
        new_teacher(TeacherArguments(model_type="perceiver"), NAMES)
    with pytest.raises(ValueError, match="no network of model_type 'bert' for AutoModelForImageClassification"):
        new_teacher(TeacherArguments(model_type="bert"), NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no student: give student"),
        ({"student_preset": "slim"}, "no teacher: give teacher, or teacher_recipe"),
        ({"model": "m", "teacher": "t"}, "teacher does not go with model"),
        ({"model": "m", "num_blocks": 2}, "num_blocks does not go with model"),
        ({"teacher": "t", "student": "s", "student_preset": "slim"}, "exclude each other"),
        (
            {"teacher": "t", "student": "s", "init_converters": "matched"},
            "init_converters=matched goes with init_student_from_teacher",
        ),
        (
            {"teacher": "t", "student": "s", "init_converters": "identity", "fit_converters": "before"},
            "init_converters=identity and fit_converters=before exclude each other",
        ),
        ({"model": "m", "init_converters": "matched"}, "init_converters does not go with model"),
        ({"teacher": "t", "student": "s", "num_blocks": 0}, "num_blocks must be at least 1, got 0"),
    ],
)
def test_options_that_exclude_each_other_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        NetworkArguments(**options)


@pytest.mark.parametrize("options", [{}, {"model": "m", "config": "c"}])
def test_teacher_is_one_of_three(options):
    with pytest.raises(ValueError, match="give exactly one of model, config and model_type"):
        TeacherArguments(**options)


def test_overrides_of_weights_are_refused():
    with pytest.raises(ValueError, match="config_overrides do not go with model"):
        TeacherArguments(model="m", config_overrides=["depths=[1]"])


# --- Processors -----------------------------------------------------------------------------------------------------


def test_own_processor_comes_first(tmp_path):
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    assert dict(image_processor(str(tmp_path), ViTConfig(), None).size) == {"height": 12, "width": 12}
    assert dict(image_processor(str(tmp_path), ViTConfig(), 12).size) == {"height": 12, "width": 12}
    with pytest.raises(ValueError, match=r"image_size=16, but .* has an image processor of its own"):
        image_processor(str(tmp_path), ViTConfig(), 16)


def test_plain_processor_makes_rgb_of_the_config_s_size(tmp_path):
    grey = Image.new("L", (9, 5), 255)
    for config, size, expected in (
        (ViTConfig(image_size=16), None, 16),
        (ViTConfig(image_size=16), 8, 8),
        (ResNetConfig(), 64, 64),
    ):
        pixels = image_processor(str(tmp_path), config, size)(grey, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, expected, expected)


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_plain_processor_makes_what_the_network_takes(tmp_path, num_channels, mode):
    config = ViTConfig(image_size=16, num_channels=num_channels)
    processor = image_processor(None, config, None)
    processor.save_pretrained(tmp_path)
    for found in (processor, image_processor(str(tmp_path), config, None)):
        pixels = found(Image.new(mode, (9, 5)), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, num_channels, 16, 16)
        assert torch.equal(pixels, torch.full_like(pixels, -1.0))


def test_processor_of_other_channels_than_the_network_s_is_refused(tmp_path):
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot prepare images of 1 channel.*image_mean and image_std of 1 value"):
        image_processor(str(tmp_path), ViTConfig(num_channels=1), None)
    with pytest.raises(ValueError, match="takes images of 5 channels"):
        image_processor(None, ViTConfig(num_channels=5), None)


def test_network_of_any_size_needs_one():
    with pytest.raises(ValueError, match="'resnet' take images of any size: give image_size"):
        image_processor(None, ResNetConfig(), None)


def test_hub_that_does_not_answer_is_no_missing_processor(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"offline|cannot find|disabled"):
        image_processor("org/never-seen", ViTConfig(), None)
