"""Losses, weights and images that are not finite: the run ends, and what was saved before stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from pwl_hf import PWLError, PWLForImageClassification, TrainingError
from pwl_hf.training import train, train_teacher
from pwl_hf.training.objective.distillation import Distillation
from pwl_hf.training.trainer.hub import HubTrainer
from tests.slow import covering
from tests.tiny import tiny_images, tiny_model
from tests.training.tiny_runs import differences, everything, tiny_trainer

NAN = float("nan")


class Break(TrainerCallback):
    """Puts a value into a tensor of the model at the end of a step."""

    def __init__(self, name: str, step: int, value: float = NAN) -> None:
        self.name, self.step, self.value = name, step, value

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                dict(model.state_dict())[self.name].view(-1)[0] = self.value


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil(trainer, first: int, value: float = NAN) -> None:
    """Images of steps from `first` on are not finite."""
    images = trainer.train_dataset.images

    class Augment:
        def augment(self, pixel_values, sample_ids, seed, step):
            return torch.full_like(pixel_values, value) if step + 1 >= first else pixel_values

    assert len(images)
    trainer.augmentation = Augment()


# --- The loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "value"), covering(["vit", "resnet"], [NAN, float("inf")]))
def test_a_loss_that_is_not_finite_ends_the_run_at_the_next_log_with_its_step(family, value, tmp_path):
    trainer = tiny_trainer(tmp_path, family, max_steps=6, logging_steps=2, save_strategy="steps", save_steps=2)
    spoil(trainer, 3, value)
    with pytest.raises(
        TrainingError, match=r"the loss of step 3 is NaN or infinite.*checkpoint-2.*learning rate"
    ) as end:
        trainer.train()
    assert isinstance(end.value, PWLError)
    assert trainer.state.global_step == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]
    kept = PWLForImageClassification.from_pretrained(tmp_path / "checkpoint-2", keep_all=True)
    assert all(torch.isfinite(tensor).all() for tensor in everything(kept).values())


@pytest.mark.parametrize("filtered", [True, False])
def test_the_filter_of_logs_hides_nothing(filtered, tmp_path):
    trainer = tiny_trainer(tmp_path, logging_nan_inf_filter=filtered, max_grad_norm=0)
    spoil(trainer, 1)
    with pytest.raises(TrainingError, match=r"the loss of step 1 .*there is no checkpoint"):
        trainer.train()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_without_logs_the_end_tells_it(accumulated, tmp_path):
    options = {"logging_strategy": "no", "gradient_accumulation_steps": accumulated, "max_steps": 2}
    trainer = tiny_trainer(tmp_path, **options)
    spoil(trainer, 2)
    with pytest.raises(TrainingError, match="the loss of step 2"):
        trainer.train()


def test_a_loss_alone_is_enough_where_weights_are_sound(tmp_path, monkeypatch):
    # As with an fp16 scaler, which skips every step: weights stay finite, and nothing is trained.
    trainer = tiny_trainer(tmp_path, logging_strategy="no", max_steps=2)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **kwargs: None)
    spoil(trainer, 1)
    with pytest.raises(TrainingError, match="the loss of step 1"):
        trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in everything(trainer.model, "encoders").values())


def test_steps_that_a_scaler_skips_are_no_fault(tmp_path, monkeypatch):
    # As in fp16: the loss is finite, its gradients are not, and the step does not happen.
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=2, max_grad_norm=0, logging_steps=1)
    step, skipped = torch.optim.AdamW.step, []

    def scaled(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if len(skipped) < 2:
            gradients[0].fill_(float("inf"))
        if all(torch.isfinite(gradient).all() for gradient in gradients):
            return step(self, *args, **kwargs)
        return skipped.append(trainer.state.global_step)

    monkeypatch.setattr(torch.optim.AdamW, "step", scaled)
    trainer.train()
    assert skipped == [0, 1]
    assert (tmp_path / "checkpoint-6").is_dir()


# --- Weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    covering(
        [
            "student.classifier.1.bias",
            "encoders.2.weight",
            "decoders.1.bias",
            "student.resnet.embedder.embedder.normalization.running_var",
            "teacher.classifier.1.bias",
        ],
        [NAN, float("inf")],
    ),
)
def test_weights_that_are_not_finite_are_not_saved_over_good_ones(name, value, tmp_path):
    trainer = tiny_trainer(tmp_path, "resnet", max_steps=2, save_strategy="steps", save_steps=1, logging_strategy="no")
    trainer.add_callback(Break(name, 2, value))
    with pytest.raises(TrainingError, match=rf"'{name}' holds NaN or infinity at step 2.*checkpoint-1"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    before = files(tmp_path / "checkpoint-1")
    with pytest.raises(TrainingError, match=name):
        trainer.save_model(str(tmp_path / "checkpoint-1"))
    assert files(tmp_path / "checkpoint-1") == before


def test_statistics_of_a_mask_that_are_not_finite_are_not_saved(tmp_path):
    model = tiny_model("resnet")
    model.estimate_statistics(tiny_images("resnet", 8), "TTSS")
    trainer = tiny_trainer(tmp_path, "resnet", model=model, max_steps=1)
    trainer.train()
    next(iter(model.statistics["TTSS"].values()))[0] = NAN
    with pytest.raises(TrainingError, match="'statistics/TTSS/"):
        trainer.save_model()
    assert not list(tmp_path.iterdir())


def test_without_saves_the_end_tells_it(tmp_path):
    trainer = tiny_trainer(tmp_path, max_steps=2, logging_strategy="no")
    trainer.add_callback(Break("student.classifier.bias", 2))
    with pytest.raises(TrainingError, match="at step 2"):
        trainer.train()


def test_an_evaluation_in_the_run_does_not_measure_them(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "logging_strategy": "no"}
    trainer = tiny_trainer(tmp_path, max_steps=3, **options)
    trainer.add_callback(Break("student.classifier.bias", 2))
    with pytest.raises(TrainingError, match="at step 2"):
        trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_accuracy" in log] == [1]


def test_a_good_best_checkpoint_does_not_make_a_broken_run_a_good_one(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = tiny_trainer(tmp_path, max_steps=2, load_best_model_at_end=True, logging_strategy="no", **options)
    trainer.add_callback(Break("encoders.1.weight", 2))
    with pytest.raises(TrainingError, match=r"at step 2.*the last whole checkpoint is \S*checkpoint-1"):
        trainer.train()


@pytest.mark.parametrize("name", ["teacher.classifier.weight", "student.classifier.weight", "decoders.3.weight"])
def test_a_model_that_is_broken_before_the_first_step_is_refused(name, tmp_path):
    model = tiny_model("vit")
    with torch.no_grad():
        model.state_dict()[name][0, 0] = NAN
    before = everything(model)
    trainer = tiny_trainer(tmp_path, model=model)
    with pytest.raises(TrainingError, match=rf"'{name}' holds NaN or infinity before the first step"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert [n for n in differences(before, everything(model)) if n != name] == []


def test_what_is_not_finite_is_not_pushed(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.train()
    monkeypatch.setattr(HubTrainer, "init_hf_repo", lambda self, **kwargs: setattr(self, "hub_model_id", "me/it"))
    with torch.no_grad():
        trainer.model.student.classifier.bias[0] = NAN
    with pytest.raises(TrainingError, match=r"student\.classifier\.bias"):
        trainer.push_to_hub()


# --- The scripts ------------------------------------------------------------------------------------------------

SHORT = ["--use_cpu", "--max_steps", "4", "--logging_steps", "1", "--disable_tqdm", "true", "--augmentation", "none"]
SHORT += ["--max_train_samples", "16", "--per_device_train_batch_size", "4", "--dataset", "digits"]


def ended(program, words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        program.main(words)
    assert isinstance(end.value.code, str)  # Printed, with status 1.
    assert "\n" not in end.value.code
    return end.value.code


def test_train_py_ends_with_a_line_and_saves_nothing(tmp_path, monkeypatch, capsys):
    forward = Distillation.forward

    def broken(self, *args, **kwargs):
        return {name: value * NAN for name, value in forward(self, *args, **kwargs).items()}

    tiny_model("vit").teacher.save_pretrained(tmp_path / "teacher")
    monkeypatch.setattr(Distillation, "forward", broken)
    words = [
        "--teacher_recipe",
        "vit-digits-teacher",
        "--student_preset",
        "slim",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    options = ["max_steps=1", "max_train_samples=8", "use_cpu=true", "max_eval_samples=4"]
    said = ended(train, [*words, "--teacher_options", *options, "--max_eval_samples", "8", *SHORT], capsys)
    assert said.startswith("training/train.py: training stopped, nothing of it is saved: the loss of step 1")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".safetensors", ".json")]


def test_train_teacher_py_ends_with_a_line_and_keeps_the_checkpoint(tmp_path, capsys, monkeypatch):
    from pwl_hf.training.supervised import SupervisedTrainer

    compute = SupervisedTrainer.compute_loss

    def broken(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * NAN if self.state.global_step == 2 else loss

    monkeypatch.setattr(SupervisedTrainer, "compute_loss", broken)
    words = ["--model_type", "vit", "--config_overrides", "hidden_size=16", "num_hidden_layers=2"]
    words += ["num_attention_heads=2", "intermediate_size=32", "image_size=8", "patch_size=4", "--eval_split", "none"]
    words += ["--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(tmp_path / "out"), *SHORT]
    said = ended(train_teacher, words, capsys)
    assert "the loss of step 3 is NaN" in said
    assert "checkpoint-2" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("option", ["--teacher", "--student"])
def test_train_py_refuses_networks_without_a_head_or_with_nan(option, tmp_path, capsys):
    from pwl_hf.training.networks.building import fresh, with_labels
    from tests.tiny import tiny_pair

    names = [str(digit) for digit in range(10)]
    pair = [fresh(with_labels(config, names)) for config in tiny_pair("vit")]
    folders = dict(zip(("--teacher", "--student"), (tmp_path / "teacher", tmp_path / "student"), strict=True))
    for network, folder in zip(pair, folders.values(), strict=True):
        network.save_pretrained(folder)
    broken = pair[option == "--student"]
    words = [word for name, folder in folders.items() for word in (name, str(folder))]
    words += ["--output_dir", str(tmp_path / "out"), "--eval_split", "none", *SHORT]

    broken.base_model.save_pretrained(folders[option])
    said = ended(train, words, capsys)
    assert f"the {option[2:]} " in said
    assert "it lacks classifier.bias, classifier.weight" in said

    with torch.no_grad():
        broken.vit.layernorm.weight[0] = NAN
    broken.save_pretrained(folders[option])
    assert "'vit.layernorm.weight' holds NaN or infinity" in ended(train, words, capsys)
    assert not (tmp_path / "out").exists()
