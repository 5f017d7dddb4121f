"""`training/train_teacher.py` from end to end, with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from pwl_hf.training.supervised import SupervisedTrainer
from pwl_hf.training.train_teacher import command_line, main
from tests.tiny import EACH_FAMILY, tiny_images, tiny_pair

NAMES = ["ant", "bee", "cat"]
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--use_cpu"]
SHORT += ["--learning_rate", "1e-3", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of images, three labels, a colour each."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 5), ("test", 3)):
        for i, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for j in range(count):
                colour = [40 + 5 * j] * 3
                colour[i] = 220 - 5 * j
                Image.new("RGB", (20, 16), tuple(colour)).save(folder / split / name / f"{j}.png")
    return folder


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_every_family_leaves_a_checkpoint_with_labels_and_processor(model_type, images, tmp_path):
    config, _ = tiny_pair(model_type)
    config.save_pretrained(tmp_path / "config")
    size = tiny_images(model_type).shape[-1]
    options = ["--config", str(tmp_path / "config"), "--image_size", str(size), "--augmentation", "flip-crop"]
    main(["--dataset", str(images), "--output_dir", str(tmp_path / "out"), *options, *SHORT])

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(NAMES))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    shown = processor(Image.new("L", (30, 20)), return_tensors="pt")
    assert shown["pixel_values"].shape == (1, 3, size, size)
    assert model(**shown).logits.shape == (1, 3)
    measured = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert measured["eval_accuracy"] * 9 == pytest.approx(round(measured["eval_accuracy"] * 9))


def test_what_was_run_runs_again_to_the_same_bytes_and_leaves_no_pickle_and_no_token(images, tmp_path):
    config, _ = tiny_pair("pwl_vgg")
    config.save_pretrained(tmp_path / "config")
    options = ["--config", str(tmp_path / "config"), "--image_size", "16", "--augmentation", "paper", "--seed", "3"]
    line = ["--dataset", str(images), "--output_dir", str(tmp_path / "out"), *options, *SHORT]
    main([*line, "--save_strategy", "steps", "--save_steps", "1", "--hub_token", "hf_secret"])
    for path in (tmp_path / "out").rglob("*"):
        assert path.name != "training_args.bin"
        assert path.is_dir() or b"hf_secret" not in path.read_bytes()
    main([str(tmp_path / "out" / "training_args.yaml"), "--output_dir", str(tmp_path / "again")])
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second
    main([str(tmp_path / "out" / "training_args.yaml"), "--output_dir", str(tmp_path / "other"), "--seed", "4"])
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != first


def test_fine_tuning_keeps_the_processor_and_replaces_the_head(images, tmp_path):
    config, _ = tiny_pair("vit")
    config.save_pretrained(tmp_path / "config")
    first = ["--config", str(tmp_path / "config"), "--dataset", str(images), "--output_dir", str(tmp_path / "first")]
    main([*first, *SHORT])
    second = ["--model", str(tmp_path / "first"), "--dataset", "digits", "--max_train_samples", "8"]
    main([*second, "--max_eval_samples", "8", "--output_dir", str(tmp_path / "second"), *SHORT])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "second")
    assert model.config.num_labels == 10
    assert dict(AutoImageProcessor.from_pretrained(tmp_path / "second").size) == {"height": 16, "width": 16}


def test_training_images_are_augmented_and_others_are_not(images, tmp_path, monkeypatch):
    seen: list[tuple[bool, torch.Tensor]] = []
    original = SupervisedTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        hook = model.register_forward_pre_hook(
            lambda module, _, given: seen.append((module.training, given["pixel_values"])), with_kwargs=True
        )
        try:
            found = original(self, model, inputs, *args, **kwargs)
        finally:
            hook.remove()
        seen.append((None, inputs["pixel_values"]))
        return found

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", compute_loss)
    config, _ = tiny_pair("vit")
    config.save_pretrained(tmp_path / "config")
    turned = ["--augmentation_overrides", "rotation=90", "background=true"]
    options = ["--config", str(tmp_path / "config"), "--dataset", "digits", "--max_train_samples", "8", *turned]
    main([*options, "--max_eval_samples", "8", "--output_dir", str(tmp_path / "out"), *SHORT])
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert {training for (training, _), _ in pairs} == {True, False}
    for (training, shown), (_, given) in pairs:
        assert torch.equal(shown, given) is not training


def test_accumulated_gradients_are_those_of_the_whole_batch(images, tmp_path):
    # The Trainer would scale the loss twice, did it believe the networks to do so.
    config, _ = tiny_pair("vit")
    config.save_pretrained(tmp_path / "config")
    logged = {}
    for name, batch, accumulated in (("whole", "8", "1"), ("parts", "4", "2")):
        options = ["--config", str(tmp_path / "config"), "--dataset", str(images), "--eval_split", "none"]
        options += ["--output_dir", str(tmp_path / name), *SHORT, "--max_steps", "1", "--logging_steps", "1"]
        main([*options, "--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulated])
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        logged[name] = state["log_history"][0]
    for value in ("loss", "grad_norm"):
        assert logged["parts"][value] == pytest.approx(logged["whole"][value], rel=1e-4)


# One whose files name tensors otherwise than its modules do, and one with BatchNorm.
@pytest.mark.parametrize("model_type", ["vit", "pwl_vgg"])
def test_resumed_training_ends_where_an_uninterrupted_one_does(model_type, images, tmp_path):
    config, _ = tiny_pair(model_type)
    config.save_pretrained(tmp_path / "config")
    size = str(tiny_images(model_type).shape[-1])
    options = ["--config", str(tmp_path / "config"), "--image_size", size, "--dataset", str(images), *SHORT]
    options += ["--eval_split", "none", "--save_strategy", "steps", "--save_steps", "1", "--augmentation", "paper"]
    main([*options, "--output_dir", str(tmp_path / "whole")])
    checkpoint = str(tmp_path / "whole" / "checkpoint-1")
    main([*options, "--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", checkpoint])
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert whole == resumed
    assert whole != (Path(checkpoint) / "model.safetensors").read_bytes()


def test_best_checkpoint_is_brought_back(images, tmp_path):
    config, _ = tiny_pair("vit")
    config.save_pretrained(tmp_path / "config")
    options = ["--config", str(tmp_path / "config"), "--dataset", str(images), "--output_dir", str(tmp_path / "out")]
    options += [
        *SHORT,
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "1",
    ]
    # It only gets worse.
    main([*options, "--learning_rate", "10", "--load_best_model_at_end", "true"])
    best = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert best.endswith("checkpoint-1")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (Path(best) / "model.safetensors").read_bytes()


def test_images_without_labels_are_refused(tmp_path):
    options = ["--model_type", "vit", "--dataset", "digits", "--unlabelled", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="has no labels whose names are known: a teacher needs them"):
        main([*options, *SHORT])


def test_output_and_data_are_asked_for(capsys):
    for line, message in (
        (["--model_type", "vit", "--dataset", "digits"], "--output_dir is needed"),
        (["--model_type", "vit", "--output_dir", "out"], "--dataset is needed"),
        (["--dataset", "digits", "--output_dir", "out"], "give exactly one of model, config and model_type"),
    ):
        with pytest.raises(SystemExit) as ended:
            command_line().parse(line)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
