"""`training/train.py` from end to end, with few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from pwl_hf import Manifest, PWLForImageClassification
from pwl_hf.data.digits import image_processor, load_splits, to_tensor
from pwl_hf.training.arguments import DigitsArguments
from pwl_hf.training.measure import predict, stage_accuracies
from pwl_hf.training.train import main, train
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = {"teacher_layers": 4, "teacher_width": 16, "max_steps": 6, "disable_tqdm": True}
OPTIONS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]


def arguments(folder: Path, **kwargs: object) -> DigitsArguments:
    return DigitsArguments(output_dir=str(folder), **{**TINY, **kwargs})


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """What the launcher made of the script, from the checkout's root."""
    folder = tmp_path_factory.mktemp("launched") / "digits"
    command = [*LAUNCH, "training/train.py", "--output_dir", str(folder), *OPTIONS]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stage 4: test accuracy" in done.stderr
    return folder


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / "pwl_index.json").read_bytes())


def test_launcher_writes_a_repository_that_steps_to_its_teacher(launched):
    model = PWLForImageClassification.from_pretrained(launched)
    images = to_tensor(load_splits()[1].images[:9], image_processor())
    while model.stage < 4:
        model.load_next_stage()
    teacher = AutoModelForImageClassification.from_pretrained(launched, subfolder="teacher")
    assert torch.equal(predict(model, images), predict(teacher, images))
    assert model.config.id2label == {i: str(i) for i in range(10)}
    assert teacher.config.id2label == model.config.id2label


def test_metrics_are_those_of_the_saved_bytes(launched):
    test = load_splits()[1]
    expected = stage_accuracies(launched, to_tensor(test.images, image_processor()), torch.tensor(test.labels))
    metrics = [stage.metrics for stage in manifest_of(launched).stages]
    assert [(m.name, m.value, m.dataset, m.split, m.n) for (m,) in metrics] == [
        ("accuracy", value, "scikit-learn digits", "test", 719) for value in expected
    ]


@pytest.mark.parametrize("subfolder", ["", "teacher"])
def test_saved_processor_is_that_of_the_training(launched, subfolder):
    assert json.loads((launched / subfolder / "preprocessor_config.json").read_text())["do_convert_rgb"] is True
    images = load_splits()[0].images[:5]
    processor = AutoImageProcessor.from_pretrained(launched, subfolder=subfolder)
    assert torch.equal(
        processor(images=images, return_tensors="pt")["pixel_values"], to_tensor(images, image_processor())
    )


def test_pipeline_answers_a_greyscale_image_as_the_model_does(launched):
    images = load_splits()[1].images[:5]
    model = PWLForImageClassification.from_pretrained(launched)
    probabilities = predict(model, to_tensor(images, image_processor())).softmax(-1)
    answers = pipeline("image-classification", model=str(launched), device="cpu")(images, top_k=10)
    for row, answer in zip(probabilities, answers, strict=True):
        found = {entry["label"]: entry["score"] for entry in answer}
        torch.testing.assert_close(torch.tensor([found[str(i)] for i in range(10)]), row)


def test_runs_of_a_seed_make_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        train(arguments(tmp_path / name, seed=seed))
    first, second, other = (manifest_of(tmp_path / name).fingerprint for name in ("first", "second", "other"))
    assert first == second
    assert first != other


def test_another_process_makes_the_same_bytes(launched, tmp_path):
    # Python orders sets of strings anew in each process: nothing may depend on that. Sums depend on the threads.
    command = [sys.executable, "-m", "pwl_hf.training.train", "--output_dir", str(tmp_path / "again"), *OPTIONS]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert manifest_of(tmp_path / "again").fingerprint == manifest_of(launched).fingerprint


def test_given_teacher_is_saved_bit_for_bit(launched, tmp_path):
    accuracies = train(arguments(tmp_path / "second", teacher=str(launched / "teacher"), num_stages=2, seed=3))
    assert len(accuracies) == 3
    before = AutoModelForImageClassification.from_pretrained(launched, subfolder="teacher").state_dict()
    after = AutoModelForImageClassification.from_pretrained(tmp_path / "second", subfolder="teacher").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_teacher_of_another_family_is_refused(tmp_path):
    tiny_model("resnet").teacher.save_pretrained(tmp_path / "resnet")
    tiny_model("vit").teacher.save_pretrained(tmp_path / "vit")
    for name, message in (("resnet", "model_type 'resnet'"), ("vit", "has 5 labels, the digits have 10")):
        image_processor().save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            train(arguments(tmp_path / "out", teacher=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--num_stages", "0"], "num_stages must be at least 1, got 0"),
        (["--epochs", "0"], "epochs must be positive, got 0"),
        (["--mask_weight", "-1"], "mask_weight must not be negative, got -1"),
        (["--alpha", "1.5"], "alpha must be from 0 to 1, got 1.5"),
        (["--student_width", "7"], "student_width must be a multiple of student_heads, got 7 and 2"),
        (["--no_such_thing", "1"], "no_such_thing"),
    ],
)
def test_wrong_arguments_end_with_their_name(option, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--output_dir", "unused", *option])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir must be a folder"):
        arguments(tmp_path / "file")


@pytest.mark.parametrize("script", [["training/train.py"], ["-m", "pwl_hf.training.train"]])
def test_help_imports_no_torch(script):
    command = [sys.executable, "-X", "importtime", *script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--output_dir" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "pwl_hf.training.arguments" in imported
    assert "torch" not in imported
