"""Data that is sorted by a model's own answers: however classes are called and ordered, all of it is right."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import ViTConfig, ViTImageProcessorPil

from pwl_hf import PWLConfig, PWLForImageClassification
from pwl_hf.cli import main
from pwl_hf.data import DataSource
from pwl_hf.data.processing import to_tensor
from pwl_hf.evaluation import evaluate_masks, evaluate_repository, evaluate_stages
from tests.data.odd_pictures import turned
from tests.slow import covering

COUNT = 12
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
TEXT_ORDER = sorted(map(str, range(COUNT)))


def save(
    folder: Path, names: Sequence[str] | None = None, *, num_channels: int = 3, problem_type: str | None = None
) -> Path:
    """A repository of 12 classes, the same weights whatever these are called, whose student tells images apart."""
    labels = (
        {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    )
    size = {"image_size": 8, "patch_size": 4, "num_attention_heads": 2, "num_channels": num_channels}
    size |= labels or {"num_labels": COUNT}
    teacher = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, **size)
    student = ViTConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, **size)
    config = PWLConfig(teacher_config=teacher, student_config=student, num_stages=2, problem_type=problem_type)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PWLForImageClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.8)
        # None of the classes is the answer to most images.
        pixels = to_tensor(pictures(), processor(num_channels), num_channels)
        with torch.no_grad():
            model.student.classifier.bias -= model.eval()(pixels).logits.mean(0)
    model.save_pretrained(folder)
    processor(num_channels).save_pretrained(folder)
    return folder


def pictures() -> list[Image.Image]:
    """Images of four colours each."""
    colours = np.random.default_rng(0).integers(0, 256, (200, 2, 2, 3), dtype=np.uint8)
    return [Image.fromarray(picture.repeat(4, 0).repeat(4, 1)) for picture in colours]


def processor(num_channels: int = 3) -> ViTImageProcessorPil:
    mean = [0.5] * num_channels
    return ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=mean, image_std=mean)


@torch.no_grad()
def answered(folder: Path, num_channels: int = 3) -> dict[int, Image.Image]:
    """An image of each class that the student answers at all."""
    images = pictures()
    model = PWLForImageClassification.from_pretrained(folder)
    found = model(to_tensor(images, processor(num_channels), num_channels)).logits.argmax(-1).tolist()
    classes = dict(zip(found, images, strict=True))
    assert len(classes) >= 5
    return dict(sorted(classes.items()))


def folders(root: Path, images: dict[str, Image.Image]) -> Path:
    for name, image in images.items():
        (root / "test" / name).mkdir(parents=True)
        image.save(root / "test" / name / "a.png")
    return root


def right(folder: Path, source: DataSource) -> float:
    return evaluate_repository(folder, source).evaluation.accuracies[0]


NAMED = {"unnamed": None, "words": WORDS, "numbers": [str(i) for i in range(COUNT)]}


@pytest.mark.parametrize(
    ("called", "form", "settings"), covering(list(NAMED), ["{}", "{:02}", "LABEL_{}"], [{}, {"streaming": True}])
)
def test_class_folders_called_by_numbers(tmp_path, called, form, settings, caplog):
    names = NAMED[called]
    folder = save(tmp_path / "repository", names)
    images = {form.format(number): image for number, image in answered(folder).items()}
    assert form == "{:02}" or list(images) != sorted(images), "the order of text must make a difference"
    data = folders(tmp_path / "data", images)
    assert right(folder, DataSource(str(data), **settings)) == 1
    assert caplog.messages == []
    load_dataset(str(data), split="test").to_parquet(tmp_path / "test.parquet")
    assert right(folder, DataSource(str(tmp_path / "test.parquet"), **settings)) == 1


def test_class_folders_called_by_the_models_names_in_their_text_order(tmp_path, caplog):
    folder = save(tmp_path / "repository", WORDS)
    blank = {word: Image.new("RGB", (8, 8)) for word in WORDS}
    images = {WORDS[number]: image for number, image in answered(folder).items()}
    report = evaluate_repository(folder, DataSource(str(folders(tmp_path / "data", blank | images))))
    # The blank ones are of one class at most.
    assert report.evaluation.masks[0].correct >= len(images)
    assert caplog.messages == []


def test_model_that_was_trained_in_text_order_is_gone_by_its_names(tmp_path, caplog):
    folder = save(tmp_path / "repository", TEXT_ORDER)
    images = {TEXT_ORDER[number]: image for number, image in answered(folder).items()}
    assert right(folder, DataSource(str(folders(tmp_path / "data", images)))) == 1
    assert caplog.messages == []


@pytest.mark.parametrize("names", [None, WORDS])
def test_columns_of_numbers_and_of_strings(tmp_path, names):
    folder = save(tmp_path / "repository", names)
    images = answered(folder)
    for name, labels in (("numbers", list(images)), ("strings", [str(number) for number in images])):
        encoded = []
        for image in images.values():
            image.save(buffer := io.BytesIO(), format="PNG")
            encoded.append({"bytes": buffer.getvalue(), "path": None})
        pq.write_table(pa.table({"image": encoded, "label": labels}), tmp_path / f"{name}-test.parquet")
        source = DataSource(str(tmp_path / f"{name}-test.parquet"))
        assert right(folder, source) == 1
    assert right(folder, DataSource(str(tmp_path / "numbers-test.parquet"), streaming=True)) == 1


def test_other_names_are_taken_by_their_place_and_told(tmp_path, caplog):
    folder = save(tmp_path / "repository", WORDS)
    images = answered(folder)
    names = {f"class {number:02}": images.get(number, Image.new("RGB", (8, 8))) for number in range(COUNT)}
    report = evaluate_repository(folder, DataSource(str(folders(tmp_path / "data", names))))
    assert report.evaluation.masks[0].correct >= len(images)
    (message,) = caplog.messages
    assert "'zero'" in message
    assert "'class 00'" in message


def test_two_classes_of_one_name_go_by_their_place(tmp_path, caplog):
    names = [*WORDS[:9], "crane", "ten", "crane"]
    folder = save(tmp_path / "repository", names)
    images = answered(folder)
    data = folders(tmp_path / "data", {str(number): image for number, image in images.items()})
    assert right(folder, DataSource(str(data))) == 1
    pixels = to_tensor(list(images.values()), processor())
    model = PWLForImageClassification.from_pretrained(folder, keep_all=True)
    items = [{"pixel_values": image, "labels": number} for image, number in zip(pixels, images, strict=True)]
    assert evaluate_masks(model, items, ["SS"], label_names=names).accuracies == [1]
    assert caplog.messages == []


def test_networks_of_one_channel_are_measured(tmp_path):
    folder = save(tmp_path / "repository", num_channels=1)
    images = {str(number): image for number, image in answered(folder, 1).items()}
    assert right(folder, DataSource(str(folders(tmp_path / "data", images)))) == 1


def test_images_are_turned_before_they_are_measured(tmp_path):
    folder = save(tmp_path / "repository")
    for orientation in (2, 6):
        image = Image.open(io.BytesIO(turned(orientation)))
        model = PWLForImageClassification.from_pretrained(folder)
        with torch.no_grad():
            answer = int(model(to_tensor([image], processor())).logits.argmax())
        # One of the two is right: a folder of one class has no labels.
        for number in (answer, (answer + 1) % COUNT):
            (target := tmp_path / f"data-{orientation}" / "test" / str(number)).mkdir(parents=True)
            (target / "a.jpg").write_bytes(turned(orientation))
        assert right(folder, DataSource(str(tmp_path / f"data-{orientation}"))) == 0.5


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_models_that_choose_no_label_are_refused_before_data_is_read(tmp_path, problem_type, monkeypatch, capsys):
    folder = save(tmp_path / "repository", problem_type=problem_type)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    options = ["--dataset", str(tmp_path / "nowhere"), "--write-metrics"]
    monkeypatch.setattr(sys, "argv", ["pwl-hf", "evaluate", str(folder), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert f"problem_type {problem_type!r}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for loaded in (str(folder), PWLForImageClassification.from_pretrained(folder, keep_all=True)):
        with pytest.raises(ValueError, match=f"problem_type {problem_type!r}"):
            evaluate_stages(loaded, [])


def test_labels_that_cannot_be_the_models_are_refused_before_images_are_read(tmp_path, monkeypatch):
    folder = save(tmp_path / "repository", WORDS)
    data = folders(tmp_path / "data", {name: Image.new("RGB", (8, 8)) for name in ("cat", "dog")})
    (data / "test" / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"has 2 labels \('cat', 'dog'\), .* has 12 \('zero', 'one', 'two', \.\.\.\)"):
        evaluate_repository(folder, DataSource(str(data)))
