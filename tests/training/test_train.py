"""`training/train.py` from end to end, with few steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from pwl_hf import Manifest, PWLForImageClassification
from pwl_hf.data import DataSource, open_split
from pwl_hf.data.digits import image_processor, load_splits
from pwl_hf.data.processing import to_tensor
from pwl_hf.evaluation import evaluate_stages
from pwl_hf.training.train import command_line, main, train
from pwl_hf.training.trainer.mask_statistics import select_statistics
from tests.children import Child
from tests.slow import slow_but
from tests.tiny import tiny_images, tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
TEACHER = {"max_steps": 3, "config_overrides": {"image_size": 8, "patch_size": 2} | SIZE}
OPTIONS = ["--max_steps", "3", "--disable_tqdm", "true", "--use_cpu", "true", "--teacher_options"]
OPTIONS += [f"{name}={json.dumps(value)}" for name, value in TEACHER.items()]
DIGITS = ["vit-digits", *OPTIONS]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
# For pairs that exist.
SHORT = ["--max_steps", "2", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "8"]
SHORT += ["--save_strategy", "no", "--dataset", "digits", "--max_train_samples", "64", "--max_eval_samples", "32"]


def run(argv: list[str], folder: Path) -> list[float]:
    return train(command_line().parse([*argv, "--output_dir", str(folder)]))


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> Path:
    """What the launcher made of the script, from the checkout's root."""
    folder = tmp_path_factory.mktemp("launched") / "digits"
    command = [*LAUNCH, "training/train.py", *DIGITS, "--output_dir", str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    # The launcher is a fork; the training that it starts is a process of its own.
    with Child(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        _, said = done.communicate()
    assert done.returncode == 0, said
    assert "stage 4: test accuracy" in said
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A ResNet for the digits, so that there is BatchNorm."""
    folder = tmp_path_factory.mktemp("teacher")
    network = tiny_model("resnet").teacher
    network.config.id2label = {i: str(i) for i in range(10)}
    network.config.label2id = {str(i): i for i in range(10)}
    network.classifier[-1] = torch.nn.Linear(network.classifier[-1].in_features, 10)
    network.save_pretrained(folder)
    image_processor().__class__(size={"height": 64, "width": 64}, do_convert_rgb=True).save_pretrained(folder)
    return folder


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / "pwl_index.json").read_bytes())


def predict(model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=images).logits


# --- What is left behind --------------------------------------------------------------------------------------------


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
    split = open_split(DataSource("digits"), "test")
    expected = evaluate_stages(str(launched), split.pixels(image_processor(), keep_in_memory=True)).accuracies
    metrics = [stage.metrics for stage in manifest_of(launched).stages]
    assert [(m.name, m.value, m.dataset, m.split, m.n) for (m, _) in metrics] == [
        ("accuracy", value, "scikit-learn digits", "test", 719) for value in expected
    ]
    measured = json.loads((launched / "eval_results.json").read_text())
    assert [measured[f"eval_accuracy_stage_{stage}"] for stage in range(5)] == expected
    assert measured["eval_accuracy"] == pytest.approx(sum(expected) / 5)
    trained = json.loads((launched / "train_results.json").read_text())
    assert trained["train_samples_per_second"] > 0
    assert trained["train_runtime"] > 0
    assert f"{expected[4]:.4f}" in (launched / "README.md").read_text()


def test_nothing_but_the_repository_and_the_run_s_records_is_left(launched):
    files = {path.name for path in launched.iterdir() if path.suffix != ".py"}
    repository = {"README.md", "config.json", "model.safetensors", "pwl_index.json", "preprocessor_config.json"}
    records = {"all_results.json", "eval_results.json", "train_results.json", "trainer_state.json"}
    assert files == repository | records | {"training_args.yaml", "teacher", "converters"}


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


# --- Repeating and going on -----------------------------------------------------------------------------------------


def test_what_was_run_runs_again_to_the_same_bytes_and_another_seed_to_others(launched, tmp_path):
    # The first run was another process: Python orders sets of strings anew in each, and nothing may depend on that.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run([str(launched / "training_args.yaml")], tmp_path / "again")
        run([str(launched / "training_args.yaml"), "--seed", "1", "--eval_split", "none"], tmp_path / "other")
    finally:
        torch.set_num_threads(threads)
    assert manifest_of(tmp_path / "again").fingerprint == manifest_of(launched).fingerprint
    assert manifest_of(tmp_path / "other").fingerprint != manifest_of(launched).fingerprint


def test_killed_and_resumed_run_equals_an_uninterrupted_one_without_the_teacher_s_recipe(teacher, tmp_path):
    options = [*SHORT, "--teacher", str(teacher), "--student_preset", "half", "--save_strategy", "steps"]
    options += ["--save_steps", "1", "--augmentation", "paper"]
    run(options, tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoint-1"
    # What the teacher was made of is not needed again: it is in the checkpoint.
    there = [option if option != str(teacher) else str(tmp_path / "gone") for option in options]
    run([*there, "--resume_from_checkpoint", str(checkpoint)], tmp_path / "resumed")
    whole, resumed = manifest_of(tmp_path / "whole"), manifest_of(tmp_path / "resumed")
    assert whole.fingerprint == resumed.fingerprint
    assert whole.fingerprint != manifest_of(checkpoint).fingerprint
    with pytest.raises(ValueError, match="resume_from_checkpoint=last: there is no checkpoint in"):
        run([*options, "--resume_from_checkpoint", "last"], tmp_path / "new")


# --- Networks -------------------------------------------------------------------------------------------------------


def test_given_teacher_is_saved_bit_for_bit_with_statistics_of_masks(teacher, tmp_path, monkeypatch):
    kept = set()

    def select(model, batches, labels):
        found = select_statistics(model, batches, labels)
        kept.update(mask for mask, choice in found.items() if choice.keeps_own)
        # Which masks measure better after two steps is chance: one has statistics of its own in any case.
        model.estimate_statistics(batches, "TS")
        kept.add("TS")
        return found

    monkeypatch.setattr("pwl_hf.training.finishing.select_statistics", select)
    options = [
        "--teacher",
        str(teacher),
        "--student_preset",
        "half",
        "--num_stages",
        "2",
        "--class_names",
        *"0123456789",
    ]
    accuracies = run([*SHORT, *options, "--statistics_images", "24"], tmp_path / "out")
    assert len(accuracies) == 3
    before = AutoModelForImageClassification.from_pretrained(teacher).state_dict()
    after = AutoModelForImageClassification.from_pretrained(tmp_path / "out", subfolder="teacher").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {sources.mask for sources in manifest_of(tmp_path / "out").masks} == kept


def test_repository_is_trained_further(launched, tmp_path):
    run([*SHORT, "--model", str(launched), "--learning_rate", "1e-2"], tmp_path / "further")
    before, after = manifest_of(launched), manifest_of(tmp_path / "further")
    assert before.fingerprint != after.fingerprint
    teachers = [
        {entry.path: entry.sha256 for entry in manifest.files if entry.path.startswith("teacher/")}
        for manifest in (before, after)
    ]
    assert teachers[0] == teachers[1]


def test_inherited_student_begins_as_the_teacher_does(launched, tmp_path):
    options = ["--teacher", str(launched / "teacher"), "--student_preset", "half-depth", "--num_stages", "2"]
    run([*SHORT, *options, "--init_student_from_teacher", "first", "--learning_rate", "1e-30"], tmp_path / "out")
    student = AutoModelForImageClassification.from_pretrained(tmp_path / "out", subfolder="teacher")
    model = PWLForImageClassification.from_pretrained(tmp_path / "out")
    ours, theirs = model.student.vit.layers[0].state_dict(), student.vit.layers[0].state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_narrower_student_begins_as_slices_with_converters_to_match(launched, tmp_path):
    options = ["--teacher", str(launched / "teacher"), "--student_preset", "half", "--num_stages", "2"]
    options += ["--init_student_from_teacher", "spread", "--init_converters", "matched", "--learning_rate", "1e-30"]
    run([*SHORT, *options], tmp_path / "out")
    model = PWLForImageClassification.from_pretrained(tmp_path / "out", keep_all=True)
    encoder, decoder = (converters["1"].weight for converters in (model.encoders, model.decoders))
    # Orthogonal directions without their mean, there and back.
    torch.testing.assert_close(encoder @ decoder, torch.eye(8) - 1 / 8, atol=1e-5, rtol=0)
    assert model.student.vit.layers[0].layernorm_before.bias.abs().max() < 1e-20


@pytest.mark.parametrize("when", slow_but(["before"], ["before", "after"]))
def test_converters_are_solved_when_asked_for(launched, tmp_path, when, monkeypatch):
    calls = []
    original = PWLForImageClassification.fit_converters

    def fit_converters(self, batches, **kwargs):
        calls.append((self.student.classifier.weight.clone(), sum(len(batch["pixel_values"]) for batch in batches)))
        original(self, batches, **kwargs)

    monkeypatch.setattr(PWLForImageClassification, "fit_converters", fit_converters)
    options = ["--teacher", str(launched / "teacher"), "--student_preset", "half", "--num_stages", "2"]
    run([*SHORT, *options, "--fit_converters", when, "--learning_rate", "1e-2"], tmp_path / "out")
    ((weight, count),) = calls
    assert count == 64
    saved = PWLForImageClassification.from_pretrained(tmp_path / "out").student.classifier.weight
    assert torch.equal(saved, weight) is (when == "after")


def test_unlabelled_images_are_enough_for_the_teacher_s_answers(launched, tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for i, image in enumerate(load_splits()[0].images[:16]):
        image.save(folder / f"{i}.png")
    options = ["--teacher", str(launched / "teacher"), "--student_preset", "half", "--num_stages", "2", *SHORT]
    options += ["--dataset", str(tmp_path / "images"), "--unlabelled", "--eval_split", "none"]
    assert run([*options, "--alpha", "0"], tmp_path / "out") == []
    assert not any(stage.metrics for stage in manifest_of(tmp_path / "out").stages)
    with pytest.raises(ValueError, match="the samples have none: set alpha to 0"):
        run(options, tmp_path / "wrong")


def test_mirrored_labels_are_brought_into_the_teacher_s_order(launched, tmp_path):
    options = ["--teacher", str(launched / "teacher"), "--student_preset", "half", *SHORT]
    options += ["--num_stages", "2"]
    for name, more in (("plain", []), ("mirrored", ["--class_names", *"9876543210"])):
        run([*options, *more], tmp_path / name)
    plain, mirrored = (manifest_of(tmp_path / name) for name in ("plain", "mirrored"))
    assert plain.fingerprint == mirrored.fingerprint
    assert plain.stages == mirrored.stages


def test_another_number_of_labels_is_refused(launched, tmp_path):
    options = ["--teacher", str(launched / "teacher"), "--student_preset", "half", *SHORT]
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / "train" / name / "0.png")
    with pytest.raises(ValueError, match="has 10 labels, the data has 2"):
        run([*options, "--dataset", str(tmp_path / "data"), "--eval_split", "none"], tmp_path / "out")
    assert not (tmp_path / "out" / "pwl_index.json").exists()


def test_teacher_and_student_that_see_images_in_other_ways_are_refused(teacher, tmp_path):
    tiny_model("convnext").student.save_pretrained(tmp_path / "convnext")
    options = [*SHORT, "--teacher", str(teacher), "--student", str(tmp_path / "convnext")]
    with pytest.raises(Exception, match=r"cannot be joined after block 1: .* 1/2 of the input's resolution"):
        run(options, tmp_path / "out")


# --- Publishing -----------------------------------------------------------------------------------------------------


def test_pushed_repository_is_the_saved_one(launched, tmp_path, hub, repo_id):
    options = [*SHORT, "--model", str(launched), "--push_to_hub", "--hub_model_id", repo_id, "--hub_token", "hf_tester"]
    run(options, tmp_path / "out")
    pushed = PWLForImageClassification.from_pretrained(repo_id)
    saved = PWLForImageClassification.from_pretrained(tmp_path / "out")
    images = tiny_images("vit")[:, :, :8, :8]
    assert torch.equal(predict(pushed, images), predict(saved, images))
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"hf_tester" not in path.read_bytes(), path


# --- The command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--num_stages", "0"], "num_blocks must be at least 1, got 0"),
        (["--mask_weight", "-1"], "mask_weight must not be negative, got -1"),
        (["--alpha", "1.5"], "alpha must be from 0 to 1, got 1.5"),
        (["--augmentation", "mirror"], "invalid choice: 'mirror'"),
        (["--augmentation_overrides", "tilt=3"], "there are rotation, horizontal_flip"),
        (["--no_such_thing", "1"], "no_such_thing"),
        (["--streaming"], "leave out streaming"),
        (["--statistics_images", "1"], "statistics_images must be 0, or at least 2"),
    ],
)
def test_wrong_options_end_with_their_name(option, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["vit-digits", "--keep_in_memory", "false", "--output_dir", "unused", *option])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_option_of_the_teacher_is_told_before_anything_is_trained(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["vit-digits", "--output_dir", str(tmp_path), "--use_cpu", "--teacher_options", "max_stepps=3"])
    assert "teacher_options: 'max_stepps' is no option of this script" in capsys.readouterr().err


def test_wrong_input_ends_with_a_line_and_status_2(capsys, tmp_path):
    options = ["--output_dir", str(tmp_path / "out"), "--use_cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["vit-digits", *options, "--dataset", str(tmp_path / "nowhere")])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said[-1].startswith("training/train.py: there is no file or folder")
    assert not any(line.startswith("Traceback") for line in said)


def test_help_lists_options_and_recipes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for word in ("--output_dir", "--prefix_weight", "--student_preset", "--dataset", "--learning_rate", "vit-digits"):
        assert word in told


def test_a_recipes_student_that_is_wider_than_another_teacher_is_told_with_what_to_change(tmp_path):
    narrow = ["config_overrides=" + json.dumps({"image_size": 8, "patch_size": 2} | SIZE | {"hidden_size": 8})]
    options = ["--max_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true", "--teacher_options", "max_steps=1"]
    reason = r"is wider .*student_config_overrides hidden_size=12 .*: with a teacher that they do not fit, give others"
    with pytest.raises(ValueError, match=reason):
        run(["vit-digits", *options, *narrow], tmp_path / "out")
