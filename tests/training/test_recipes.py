"""Every recipe: its options exist, and its networks can be built and joined."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import ASTConfig, AutoConfig, BertConfig, ViTConfig, Wav2Vec2Config

from pwl_hf import PWLConfig
from pwl_hf.opening import samples_of
from pwl_hf.training import tasks, train_teacher
from pwl_hf.training import train as script
from pwl_hf.training.command_line import RECIPES
from pwl_hf.training.networks import building, processing
from pwl_hf.training.networks.presets import PRESETS, preset_overrides
from pwl_hf.training.pairs import parse_pairs

OVERLAYS = ["paper", "quick"]
ALL = sorted(path.stem for path in RECIPES.glob("*.yaml"))
TEACHERS = [name for name in ALL if name.endswith("-teacher")]
RUNS = [name for name in ALL if name not in TEACHERS and name not in OVERLAYS]
# Those of the Hub that recipes name, as their configs there are.
ON_THE_HUB = {
    "google/vit-base-patch16-224": ViTConfig(num_labels=1000),
    "WinKawaks/vit-tiny-patch16-224": ViTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000
    ),
    "sentence-transformers/all-MiniLM-L6-v2": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "dslim/bert-base-NER": BertConfig(num_labels=9),
    "MIT/ast-finetuned-speech-commands-v2": ASTConfig(num_labels=35, max_length=128),
    "facebook/wav2vec2-base": Wav2Vec2Config(),
}
# Of texts, words and sounds, with their blocks.
OTHERS = {
    "bert-banking77": 3,
    "bert-rotten-tomatoes": 3,
    "bert-conll2003": 3,
    "ast-speech-commands": 4,
    "wav2vec2-keywords": 4,
}
# Blocks of the method's pairs: arXiv 2509.22319, and the authors' code.
BLOCKS = {"vgg": 5, "resnet": 4, "vit": 6}


@pytest.fixture(autouse=True)
def any_device(monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


def teacher_config(name: str):
    (arguments, _, _) = train_teacher.command_line().parse([name, "--output_dir", "out"]).parts
    if arguments.model is not None:
        return ON_THE_HUB[arguments.model], arguments
    overrides = parse_pairs(arguments.config_overrides or (), "config_overrides")
    return building.derived_config(AutoConfig.for_model(arguments.model_type), overrides), arguments


def test_every_kind_of_recipe_is_there():
    wanted = {f"{family}-cifar{n}" for family in BLOCKS for n in (10, 100)} | {"vit-digits", "vit-imagenet"}
    wanted |= OTHERS.keys()
    assert set(RUNS) == wanted
    of_the_hub = {"vit-imagenet", "bert-conll2003", "ast-speech-commands"}
    assert {f"{name}-teacher" for name in wanted - of_the_hub} == set(TEACHERS)


@pytest.mark.parametrize("name", ALL)
def test_recipe_says_what_it_is_and_leaves_the_output_to_the_line(name):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "output_dir" not in yaml.safe_load(text)


@pytest.mark.parametrize("name", [name for name in TEACHERS if name.startswith(("vit", "vgg", "resnet"))])
def test_teacher_of_a_recipe_can_be_built_and_prepares_images(name):
    config, arguments = teacher_config(name)
    with torch.device("meta"):
        network = building.fresh(building.with_labels(config, ["a", "b"]))
    assert network.config.num_labels == 2
    size = dict(processing.image_processor(None, config, arguments.image_size).size)
    assert set(size.values()) == {{"vgg": 32, "resnet": 64, "vit": 224}[name.split("-")[0]] if "cifar" in name else 8}


@pytest.mark.parametrize("name", RUNS)
def test_networks_of_a_recipe_can_be_joined(name):
    arguments, data, objective, *_, args = script.command_line().parse([name, "--output_dir", "out"]).parts
    teacher = ON_THE_HUB[arguments.teacher] if arguments.teacher else teacher_config(arguments.teacher_recipe)[0]
    if arguments.student is not None:
        student = ON_THE_HUB[arguments.student]
    else:
        preset = preset_overrides(arguments.student_preset, teacher) if arguments.student_preset else {}
        given = parse_pairs(arguments.student_config_overrides or (), "student_config_overrides")
        student = building.derived_config(building.derived_config(teacher, preset), given)
    config = PWLConfig(teacher_config=teacher, student_config=student, num_blocks=arguments.num_blocks)
    assert config.num_blocks == (BLOCKS[name.split("-")[0]] if "cifar" in name else OTHERS.get(name, 4))
    if name in OTHERS:
        # As the model's: found from a teacher of the Hub, and said where a recipe trains one.
        task = tasks.task_of(arguments.task, None if arguments.task else teacher, name)
        tasks.refuse_other_options(task, (arguments, data, objective, args))
        assert samples_of(task) == {"bert-conll2003": "words"}.get(name, "texts" if name[0] == "b" else "sounds")
    if "cifar" in name:
        assert (args.num_train_epochs, args.per_device_train_batch_size, args.learning_rate) == (160, 128, 0.05)
        assert data.dataset == "uoft-cs/" + name.split("-")[1]
        assert args.converter_lr_scale == (1.0 if name.startswith("vgg") else 0.2)
    assert objective.prefix_weight > 0


@pytest.mark.parametrize("name", [name for name in RUNS if f"{name}-teacher" in TEACHERS])
def test_teacher_and_student_of_a_recipe_see_the_same_data(name):
    read = [yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text()) for recipe in (name, f"{name}-teacher")]
    for key in (
        "task",
        "dataset",
        "dataset_config",
        "dataset_revision",
        "audio_column",
        "label_column",
        "augmentation",
        "keep_in_memory",
    ):
        assert read[0].get(key) == read[1].get(key)


def test_overlay_of_the_paper_changes_the_objective_alone():
    before = script.command_line().parse(["vgg-cifar10", "--output_dir", "out"])
    after = script.command_line().parse(["vgg-cifar10", "paper", "--teacher_drift", "false", "--output_dir", "out"])
    objective, args = after.parts[2], after.parts[-1]
    assert before.parts[1] == after.parts[1]
    assert after.parts[0].num_blocks == 5
    assert (objective.prefix_weight, objective.mask_weight, objective.mask_alpha) == (0, 2, 0)
    assert objective.shared_statistics
    assert not objective.teacher_drift
    assert args.max_grad_norm == 0
    assert after.parts[0].statistics_images == 0


def test_recipes_travel_with_the_package():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"recipes/*"' in text


def test_every_preset_is_named_in_the_help():
    told = script.command_line().parser.format_help()
    assert all(name in told for name in PRESETS)
