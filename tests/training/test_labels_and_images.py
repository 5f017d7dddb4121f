"""The data's labels and images, and the networks that are trained on them: one rule from start to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTConfig, ViTImageProcessorPil

from pwl_hf import Manifest, PWLForImageClassification
from pwl_hf.data import DataError
from pwl_hf.training import train_teacher
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.networks.building import fresh
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.splits import open_eval_split, open_training_split
from pwl_hf.training.train import command_line, train
from tests.data.pictures import NAMES, picture, plain_parquet, table
from tests.tiny import tiny_model

SHORT = ["--max_steps", "2", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "4"]
SHORT += ["--save_strategy", "no"]


def run(folder: Path, *options: str) -> list[float]:
    return train(command_line().parse([*SHORT, *options, "--output_dir", str(folder)]))


def folders(root: Path, **splits: Sequence[str]) -> Path:
    """Class folders of two pictures each, told by the class's place in the first split."""
    places = {name: place for place, name in enumerate(next(iter(splits.values())))}
    for split, names in splits.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                picture(20 * places[name] + i).save(root / split / name / f"{i}.png")
    return root


def network(folder: Path, names: Sequence[str] | None, **changes: Any) -> Path:
    """A saved ViT with these labels, the same weights whatever they are called."""
    labels = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    )
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**{**size, "image_size": 8, "patch_size": 4, **(labels or {"num_labels": 3}), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: PreTrainedModel = fresh(config)
    made.save_pretrained(folder)
    mean = [0.5] * config.num_channels
    size = {"height": 8, "width": 8}
    ViTImageProcessorPil(size=size, image_mean=mean, image_std=mean).save_pretrained(folder)
    return folder


def student(teacher: Path) -> list[str]:
    return ["--teacher", str(teacher), "--student_config_overrides", "num_hidden_layers=2", "--num_stages", "2"]


# --- Names ----------------------------------------------------------------------------------------------------------


def test_other_names_are_told_before_training_and_measured_at_its_end(tmp_path, caplog):
    data = folders(tmp_path / "data", train=["cat", "dog", "owl"], test=["cat", "dog", "owl"])
    teacher = network(tmp_path / "teacher", ["Katze", "Hund", "Eule"])
    accuracies = run(tmp_path / "out", *student(teacher), "--dataset", str(data))
    assert len(accuracies) == 3
    first, last = (message for message in caplog.messages if "label names differ" in message)
    for told, model, split in ((first, teacher, "train"), (last, tmp_path / "out", "test")):
        assert f"label 0 is 'Katze' in {model} and 'cat' in split {split!r}" in told
    metrics = Manifest.from_json((tmp_path / "out" / "pwl_index.json").read_bytes()).stages[2].metrics
    assert metrics[0].value == accuracies[2]
    assert PWLForImageClassification.from_pretrained(tmp_path / "out").config.id2label[0] == "Katze"


def test_order_of_the_data_s_names_is_the_models_before_and_after_training(tmp_path, caplog):
    names = ["cat", "dog", "owl"]
    data = folders(tmp_path / "data", train=names, test=names)
    results = {}
    for order in (names, ["owl", "cat", "dog"]):
        # The same head, its rows in the order of the names.
        teacher = network(tmp_path / f"teacher-{order[0]}", names)
        made = AutoModelForImageClassification.from_pretrained(teacher)
        with torch.no_grad():
            for tensor in made.classifier.parameters():
                tensor.copy_(tensor[[names.index(name) for name in order]].clone())
        made.config.id2label, made.config.label2id = dict(enumerate(order)), {n: i for i, n in enumerate(order)}
        made.save_pretrained(teacher)
        results[order[0]] = run(tmp_path / order[0], *student(teacher), "--dataset", str(data))[-1]
    assert results["cat"] == results["owl"]
    assert not [message for message in caplog.messages if "label names differ" in message]


def test_two_labels_of_one_name_are_trained_and_measured(tmp_path):
    names = ["crane", "dog", "crane"]
    for split in ("train", "test"):
        plain_parquet(tmp_path / f"{split}.parquet", range(6), [0, 1, 2] * 2)
    teacher = network(tmp_path / "teacher", names)
    options = ["--dataset", str(tmp_path / "*.parquet"), "--class_names", *names]
    assert len(run(tmp_path / "out", *student(teacher), *options)) == 3
    config = PWLForImageClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == dict(enumerate(names))


@pytest.mark.parametrize("kind", ["teacher", "repository"])
def test_labels_that_cannot_be_the_models_are_refused_before_training(tmp_path, kind):
    names = ["cat", "dog"]
    data = folders(tmp_path / "data", train=names, test=names)
    teacher = network(tmp_path / "teacher", ["cat", "dog", "owl"])
    options = student(teacher)
    if kind == "repository":
        made = [AutoModelForImageClassification.from_pretrained(teacher) for _ in range(2)]
        PWLForImageClassification.from_teacher_student(*made, num_stages=2).save_pretrained(tmp_path / "pwl")
        options = ["--model", str(tmp_path / "pwl")]
    with pytest.raises(ValueError, match="has 3 labels, the data has 2"):
        run(tmp_path / "out", *options, "--dataset", str(data))
    assert not (tmp_path / "out").exists()


def test_split_to_measure_on_is_numbered_as_the_one_to_train_on(tmp_path):
    table(range(6)).to_parquet(tmp_path / "train.parquet")
    table(range(6), names=NAMES[::-1]).to_parquet(tmp_path / "test.parquet")
    for dataset in (tmp_path, tmp_path / "*.parquet"):
        data = DataArguments(dataset=str(dataset))
        train_split = open_training_split(data, "images")
        assert open_eval_split(data, "images", None).label_names == NAMES[::-1]
        assert open_eval_split(data, "images", train_split.label_names).labels.tolist() == train_split.labels.tolist()


def test_split_to_measure_on_may_lack_labels_and_not_have_others(tmp_path):
    plain_parquet(tmp_path / "train.parquet", range(3), ["cat", "dog", "owl"])
    plain_parquet(tmp_path / "test.parquet", range(2), ["owl", "cat"])
    data = DataArguments(dataset=str(tmp_path / "*.parquet"))
    names = open_training_split(data, "images").label_names
    assert open_eval_split(data, "images", names).labels.tolist() == [2, 0]
    teacher = network(tmp_path / "teacher", ["dog", "owl", "cat"])
    assert len(run(tmp_path / "out", *student(teacher), "--dataset", data.dataset)) == 3
    plain_parquet(tmp_path / "test.parquet", range(2), ["owl", "fox"])
    with pytest.raises(DataError, match=r"has the labels \['fox', 'owl'\], the training split .*give class_names"):
        open_eval_split(data, "images", names)


def test_folders_called_by_numbers_are_trained_as_these_classes(tmp_path):
    names = [str(number) for number in range(12)]
    data = folders(tmp_path / "data", train=names, test=names)
    options = ["--model_type", "vit", "--config_overrides", "hidden_size=8", "intermediate_size=16"]
    options += ["num_hidden_layers=1", "num_attention_heads=2", "image_size=8", "patch_size=4"]
    train_teacher.main([*options, "--dataset", str(data), *SHORT, "--output_dir", str(tmp_path / "out")])
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == dict(enumerate(names))


@pytest.mark.parametrize(
    ("names", "expected", "told"),
    [
        (None, ["cat", "dog", "owl"], False),
        (["pan", "pot", "cup"], ["cat", "dog", "owl"], True),
        (["Owl", "Cat", "Dog"], ["Owl", "Cat", "Dog"], False),
        pytest.param(["owl", "cat", "dog"], ["owl", "cat", "dog"], False, marks=pytest.mark.slow),
    ],
)
def test_fine_tuned_network_is_called_by_what_it_was_trained_to_be(tmp_path, names, expected, told, caplog):
    data = folders(tmp_path / "data", train=["cat", "dog", "owl"], test=["cat", "dog", "owl"])
    model = network(tmp_path / "model", names)
    train_teacher.main(["--model", str(model), "--dataset", str(data), *SHORT, "--output_dir", str(tmp_path / "out")])
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == dict(enumerate(expected))
    assert config.label2id == {name: i for i, name in enumerate(expected)}
    assert any("label names differ" in message for message in caplog.messages) is told


# --- Problems -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type 'multi_label_classification'"),
        ({"problem_type": "regression"}, "problem_type 'regression'"),
    ],
)
def test_networks_that_choose_no_label_are_refused_before_training(tmp_path, changes, message):
    names = ["cat", "dog", "owl"]
    data = folders(tmp_path / "data", train=names, test=names)
    teacher = network(tmp_path / "teacher", names, **changes)
    for options in (student(teacher), [*student(teacher), "--unlabelled", "--alpha", "0", "--eval_split", "none"]):
        with pytest.raises(ValueError, match=f"teacher.*{message}.*need one label of several"):
            run(tmp_path / "out", *options, "--dataset", str(data))
    line = ["--model", str(teacher), "--dataset", str(data), *SHORT, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=message):
        train_teacher.main(line)
    overrides = ["--config_overrides", *(f"{name}={json.dumps(value)}" for name, value in changes.items())]
    with pytest.raises(ValueError, match=message):
        train_teacher.main(["--config", str(teacher), *overrides, *line[2:]])
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=message):
        build_objective(tiny_model("vit", **changes), ObjectiveArguments())


def test_one_label_is_nothing_to_train(tmp_path):
    for split in ("train", "test"):
        plain_parquet(tmp_path / f"{split}.parquet", range(4), ["cat"] * 4)
    teacher = network(tmp_path / "teacher", ["cat"])
    with pytest.raises(ValueError, match=r"teacher.* has num_labels 1: .* need one label of several"):
        run(tmp_path / "out", *student(teacher), "--dataset", str(tmp_path / "*.parquet"))


# --- Channels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        ["--ig_probability", "0.5", "--ig_steps", "2"],
        *(pytest.param(more, marks=pytest.mark.slow) for more in ([], ["--keep_in_memory", "true"])),
    ],
)
def test_networks_of_one_channel_are_trained_and_measured(tmp_path, more):
    names = ["cat", "dog", "owl"]
    data = folders(tmp_path / "data", train=names, test=names)
    teacher = network(tmp_path / "teacher", names, num_channels=1)
    options = [*student(teacher), "--dataset", str(data), "--augmentation", "paper", *more]
    assert len(run(tmp_path / "out", *options)) == 3
    model = PWLForImageClassification.from_pretrained(tmp_path / "out", stage="teacher")
    assert model(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 3)


def test_teacher_of_one_channel_leaves_a_processor_that_fits(tmp_path):
    names = ["cat", "dog", "owl"]
    data = folders(tmp_path / "data", train=names, test=names)
    (teacher := network(tmp_path / "teacher", names, num_channels=1)).joinpath("preprocessor_config.json").unlink()
    options = ["--config", str(teacher), "--dataset", str(data), *SHORT, "--output_dir", str(tmp_path / "out")]
    train_teacher.main(options)
    pixels = ViTImageProcessorPil.from_pretrained(tmp_path / "out")(Image.new("L", (9, 9)), return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 1, 8, 8)


def test_processor_of_other_channels_is_refused_before_training(tmp_path):
    names = ["cat", "dog", "owl"]
    data = folders(tmp_path / "data", train=names, test=names)
    teacher = network(tmp_path / "teacher", names, num_channels=1)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(teacher)
    with pytest.raises(ValueError, match="cannot prepare images of 1 channel"):
        run(tmp_path / "out", *student(teacher), "--dataset", str(data))
    assert not (tmp_path / "out").exists()
