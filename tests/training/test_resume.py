"""A run that is killed and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from pwl_hf import RepositoryError
from tests.slow import slow_but
from tests.tiny import tiny_images, tiny_model
from tests.training.tiny_runs import differences, everything, tiny_trainer


class Killed(Exception):
    """What ends a run in the middle."""


class KillAfter(TrainerCallback):
    """Ends a run after a step, when it is saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        # A step further than what was saved, so that something is lost.
        if state.global_step == self.step + 1:
            raise Killed


class Steps(TrainerCallback):
    """What is seen after each step."""

    def __init__(self):
        self.losses = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses[state.global_step] = {k: v for k, v in logs.items() if k != "samples_per_second"}


def _model(family, *, trained=True):
    """The tiny model with dropout; not `trained`, with another student and other converters."""
    model = tiny_model(family)
    for module in model.student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    if not trained:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not name.startswith("teacher.") and tensor.is_floating_point():
                    tensor.add_(0.5)
    return model


def _run(folder, model, family, steps, **options):
    options = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None} | options
    trainer = tiny_trainer(folder, family, model=model, **options)
    trainer.add_callback(steps)
    return trainer


@pytest.mark.parametrize(
    ("family", "killed_after", "options"),
    [
        ("vit", 3, {}),
        ("resnet", 3, {"optim": "sgd", "lr_scheduler_type": "linear", "warmup_steps": 2}),
        # 4 steps are an epoch.
        pytest.param("vit", 4, {"eval_strategy": "steps", "eval_steps": 1}, marks=pytest.mark.slow),
        pytest.param(
            *("vit", 3, {"gradient_accumulation_steps": 2, "optim": "sgd", "optim_args": "momentum=0.9"}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(family, killed_after, options, tmp_path):
    steps = Steps()
    whole = _run(tmp_path / "whole", _model(family), family, steps, **options, save_strategy="no")
    options["save_steps"] = killed_after
    whole.train()
    first, killed, resumed = _model(family), Steps(), Steps()
    trainer = _run(tmp_path / "run", first, family, killed, **options)
    trainer.add_callback(KillAfter(killed_after))
    with pytest.raises(Killed):
        trainer.train()

    again = _run(tmp_path / "run", _model(family, trained=False), family, resumed, **options)
    before = everything(again.model, "teacher.")
    torch.rand(7)  # Another process would be in another random state.
    again.train(resume_from_checkpoint=True)

    assert sorted(resumed.losses) == list(range(killed_after + 1, 7))
    for step in range(1, 7):
        for seen in (killed.losses, resumed.losses):
            assert step not in seen or seen[step] == steps.losses[step], step
    assert not differences(everything(whole.model), everything(again.model))
    assert not differences(before, everything(again.model, "teacher."))
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())
    for one, other in zip(_state(whole), _state(again), strict=True):
        assert torch.equal(one, other)
    assert whole.lr_scheduler.state_dict() == again.lr_scheduler.state_dict()


def _state(trainer):
    states = trainer.optimizer.state_dict()["state"]
    return [value for key in sorted(states) for value in states[key].values() if isinstance(value, torch.Tensor)]


def test_resuming_passes_over_a_half_written_checkpoint(tmp_path):
    trainer = _run(tmp_path, _model("vit"), "vit", Steps(), max_steps=3, save_steps=2)
    trainer.train()
    (tmp_path / "checkpoint-3" / "trainer_state.json").unlink()
    again = _run(tmp_path, _model("vit"), "vit", Steps(), max_steps=3, save_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    assert not differences(everything(trainer.model), everything(again.model))
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").is_file()


@pytest.mark.parametrize("family", slow_but(["resnet"], ["vit", "resnet"]))
def test_the_best_model_is_loaded_to_the_last_buffer(family, tmp_path):
    trainer = _run(
        tmp_path,
        _model(family),
        family,
        Steps(),
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        max_steps=4,
        load_best_model_at_end=True,
    )
    found = {}

    class Worsen(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            metrics["eval_accuracy"] = 1.0 if state.global_step == 2 else 0.0
            found[state.global_step] = everything(trainer.model)

    trainer.add_callback(Worsen())
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert differences(found[4], found[2])
    assert not differences(everything(trainer.model), found[2])


def test_statistics_of_masks_are_resumed(tmp_path):
    model = _model("resnet")
    model.estimate_statistics(tiny_images("resnet", 4), "TTSS")
    trainer = _run(tmp_path, model, "resnet", Steps(), max_steps=2)
    trainer.train()
    again = _run(tmp_path, _model("resnet"), "resnet", Steps(), max_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2  # It was ended: nothing is left to do.
    assert set(again.model.statistics) == {"TTSS"}
    assert not differences(everything(trainer.model), everything(again.model))


# --- What is refused ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    _run(folder, _model("vit"), "vit", Steps(), max_steps=2, save_steps=2).train()
    return folder


@pytest.fixture
def checkpoint(ended, tmp_path):
    shutil.copytree(ended, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoint-2"


def _refused(error, match, path, model=None, folder=None):
    trainer = _run(folder or path.parent, model or _model("vit", trained=False), "vit", Steps())
    before = everything(trainer.model)
    with pytest.raises(error, match=match):
        trainer.train(resume_from_checkpoint=str(path))
    assert not differences(before, everything(trainer.model))


def test_resuming_with_another_teacher_is_refused(checkpoint):
    model = tiny_model("vit", seed=3)
    _refused(ValueError, "checkpoint of another model: its teacher block 1 has other weights", checkpoint, model)


def test_resuming_with_other_networks_is_refused(checkpoint):
    _refused(ValueError, "checkpoint of another model: ", checkpoint, tiny_model("vit", num_stages=2))


def test_resuming_from_a_saved_model_is_refused(checkpoint, tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "model")
    _refused(ValueError, "is no whole checkpoint.*train the model in it further as a new run", tmp_path / "model")


def test_resuming_without_the_optimizers_state_is_refused(checkpoint):
    (checkpoint / "optimizer.pt").unlink()
    _refused(ValueError, "has no optimizer.pt, as with save_only_model", checkpoint)


def test_resuming_from_a_damaged_model_is_refused(checkpoint):
    (checkpoint / "converters" / "encoder-00001.safetensors").unlink()
    _refused(RepositoryError, "encoder-00001", checkpoint)


def test_resuming_from_nothing_is_refused(tmp_path):
    trainer = _run(tmp_path, _model("vit"), "vit", Steps())
    with pytest.raises(ValueError, match="there is no whole checkpoint in"):
        trainer.train(resume_from_checkpoint=True)


def test_a_moved_run_is_resumed(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "elsewhere" / "checkpoint-2")
    trainer = _run(tmp_path / "elsewhere", _model("vit", trained=False), "vit", Steps(), max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
