"""SigLIP 2, which takes images as patches with a mask: trained, measured and served from images of any shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, Siglip2ImageProcessorPil, ViTImageProcessorPil, pipeline

from pwl_hf import PWLForImageClassification
from pwl_hf.conversion import convert_pair
from pwl_hf.data import DataSource
from pwl_hf.evaluation.repositories import evaluate_repository
from pwl_hf.training.networks.processing import image_processor
from tests.modeling.image_types import image_config
from tests.training.test_tasks import teach, train

NAMES = ("ant", "bee", "cat")
# Rows and columns of patches differ, and so does the padding.
SHAPES = ((16, 16), (40, 12), (12, 36), (9, 20))


def pictures(folder: Path) -> list[Path]:
    paths = []
    for number in range(12):
        path = folder / NAMES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = torch.randint(0, 256, (*SHAPES[number % 4], 3), generator=torch.Generator().manual_seed(number))
        noise[..., number % 3] = 255
        Image.fromarray(noise.to(torch.uint8).numpy()).save(path)
        paths.append(path)
    return paths


def saved(role: str, folder: Path) -> Path:
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    config = image_config("siglip2", role)
    config.update(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a teacher and a student; not to be written to."""
    folder = tmp_path_factory.mktemp("patches")
    pictures(folder / "data" / "train")
    for role in ("teacher", "student"):
        saved(role, folder / role)
    return folder


@torch.no_grad()
def right_of(model: Any, folder: Path) -> list[bool]:
    """Whether each image is right, one at a time."""
    processor = Siglip2ImageProcessorPil.from_pretrained(folder)
    found = []
    for path in sorted((folder.parent / "data" / "train").rglob("*.png")):
        answer = model(**processor(Image.open(path).convert("RGB"), return_tensors="pt")).logits.argmax()
        found.append(NAMES[int(answer)] == path.parent.name)
    return found


@pytest.mark.parametrize("options", [[], ["--keep_in_memory", "true"], ["--init_student_from_teacher", "spread"]])
def test_a_run_ends_with_a_repository_that_is_measured_and_served(
    place: Path, tmp_path: Path, options: list[str]
) -> None:
    data = ["--dataset", str(place / "data")]
    networks = ["--teacher", str(place / "teacher"), "--student", str(place / "student"), "--num_blocks", "2"]
    out = tmp_path / "out"
    accuracies = train(out, *data, *networks, *options)
    report = evaluate_repository(out, DataSource(str(place / "data")), "train", batch_size=5)
    assert report.evaluation.accuracies == accuracies
    for name in ("data", "teacher"):
        (tmp_path / name).symlink_to(place / name)
    for stage, accuracy in enumerate(accuracies):
        right = right_of(PWLForImageClassification.from_pretrained(out, stage=stage), out)
        assert sum(right) / len(right) == accuracy
    # As the example server answers it.
    from examples.serve import TorchClassifier

    classifier = TorchClassifier(str(out))
    assert classifier.streams[-1].wait(60)
    with Image.open(next((place / "data").rglob("*.png"))) as image:
        found = classifier.classify(image, {"top_k": 3})
        expected = pipeline("image-classification", model=str(out / "teacher"))(image.convert("RGB"))
    assert [item["label"] for item in found] == [item["label"] for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-6)


def test_a_teacher_of_patches_is_trained(place: Path, tmp_path: Path) -> None:
    found = teach(tmp_path / "out", "--model", str(place / "teacher"), "--dataset", str(place / "data"))
    network = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    right = right_of(network, place / "teacher")
    assert found["eval_accuracy"] == sum(right) / len(right)


def test_converters_are_fitted_to_patches(place: Path, tmp_path: Path) -> None:
    model = convert_pair(
        str(place / "teacher"), str(place / "student"), tmp_path / "out", num_blocks=2, images=place / "data"
    )
    fresh = PWLForImageClassification.from_teacher_student(str(place / "teacher"), str(place / "student"), num_blocks=2)
    assert not torch.equal(model.encoders["1"].weight, fresh.encoders["1"].weight)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--augmentation", "flip-crop"], "augmentation"),
        (["--mixup_alpha", "0.2"], "mixup_alpha"),
        (["--ig_probability", "0.5"], "ig_probability"),
    ],
)
def test_what_is_for_whole_images_is_refused(place: Path, tmp_path: Path, options: list[str], name: str) -> None:
    networks = ["--teacher", str(place / "teacher"), "--student", str(place / "student"), "--num_blocks", "2"]
    with pytest.raises(ValueError, match=f"{name} is for whole images, and a siglip2 takes patches"):
        train(tmp_path / "out", "--dataset", str(place / "data"), *networks, *options)
    assert not (tmp_path / "out").exists()


def test_processors_are_those_of_patches(place: Path, tmp_path: Path) -> None:
    config = image_config("siglip2", "teacher")
    made = image_processor(None, config, None)
    assert (type(made), made.patch_size, made.max_num_patches) == (Siglip2ImageProcessorPil, 4, 16)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(ViTImageProcessorPil\) that makes pixel_values, which a siglip2 does not"):
        image_processor(str(tmp_path), config, None)
    with pytest.raises(ValueError, match=r"makes pixel_values, pixel_attention_mask, .* which a vit does not take"):
        image_processor(str(place / "teacher"), image_config("vit", "teacher"), None)
