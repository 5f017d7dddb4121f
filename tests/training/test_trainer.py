"""A training run: what is called, what is trained and left alone, what is logged and measured."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

from pwl_hf import SaveError, StageError
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.trainer.parameter_groups import parameter_groups
from pwl_hf.training.trainer.pwl_trainer import PWLTrainer
from pwl_hf.training.trainer.training_arguments import PWLTrainingArguments
from tests.slow import slow_but
from tests.tiny import tiny_model
from tests.training.tiny_runs import AUGMENTATION, Pictures, differences, everything, tiny_trainer

FAMILIES = ["vit", "resnet"]


class Calls:
    """The objective's forward passes, as a hook sees them."""

    def __init__(self, trainer):
        self.seen = []
        trainer.objective.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.seen.append({"pixel_values": args[0]["pixel_values"].clone(), "labels": args[1], **kwargs})


@pytest.mark.parametrize("family", FAMILIES)
def test_training_leaves_the_teacher_alone_and_trains_the_rest(family, tmp_path):
    trainer = tiny_trainer(tmp_path, family)
    before = everything(trainer.model)
    trainer.train()
    after = everything(trainer.model)
    changed = differences(before, after)
    assert not [name for name in changed if name.startswith("teacher.")]
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"student", "encoders", "decoders"}
    assert trained <= set(changed)
    assert not any(module.training for module in trainer.model.teacher.modules())


def test_the_model_is_the_trainers_and_the_objective_is_what_runs_once_a_step(tmp_path):
    trainer = tiny_trainer(tmp_path)
    calls = Calls(trainer)
    trainer.train()
    assert trainer.model is trainer.objective.model
    assert trainer.model_wrapped is trainer.objective
    assert [call["step"] for call in calls.seen] == list(range(6))
    assert not hasattr(trainer.model.config, "use_cache")


def test_images_are_augmented_by_seed_step_and_number(tmp_path):
    trainer = tiny_trainer(tmp_path, seed=5)
    calls = Calls(trainer)
    trainer.train()
    images = trainer.train_dataset.images
    for call in calls.seen:
        ids = call["sample_ids"]
        assert torch.equal(call["pixel_values"], AUGMENTATION.augment(images[ids], ids, 5, call["step"]))
        assert not torch.equal(call["pixel_values"], images[ids])
        assert torch.equal(call["labels"], trainer.train_dataset.labels[ids])


@pytest.mark.parametrize("augmentation", [AUGMENTATION, None], ids=["augmented", "as they are"])
def test_images_and_features_lie_channels_last_on_a_cpu(tmp_path, augmentation):
    trainer = tiny_trainer(tmp_path, "resnet")
    trainer.augmentation = augmentation
    seen = []
    for network in (trainer.model.teacher, trainer.model.student):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    trainer.train()
    assert seen
    assert all(features.is_contiguous(memory_format=torch.channels_last) for features in seen)


def test_augmentation_without_numbers_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.data_collator = lambda items: {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    with pytest.raises(ValueError, match="augmentation needs sample_ids"):
        trainer.train()


def test_images_without_labels_are_trained_on_but_not_measured_on(tmp_path):
    trainer = tiny_trainer(tmp_path, objective={"alpha": 0.0})
    trainer.train_dataset = Pictures("vit", 16, labelled=False)
    trainer.train()
    with pytest.raises(ValueError, match="have no labels"):
        trainer.evaluate(Pictures("vit", 8, labelled=False))


def test_accumulated_batches_are_one_batch(tmp_path):
    # Adam makes a large step of the smallest difference of two small gradients.
    options = {"max_steps": 3, "optim": "sgd"}
    whole = tiny_trainer(tmp_path, per_device_train_batch_size=8, **options)
    halves = tiny_trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, **options)
    calls = Calls(halves)
    one, two = whole.train(), halves.train()
    assert [call["step"] for call in calls.seen] == [0, 0, 1, 1, 2, 2]
    assert two.training_loss == pytest.approx(one.training_loss, rel=1e-5)
    for name, tensor in everything(whole.model).items():
        torch.testing.assert_close(everything(halves.model)[name], tensor, atol=1e-5, rtol=1e-4)


def test_bf16_computes_in_bf16_and_keeps_the_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, max_steps=2, eval_strategy="steps", eval_steps=1)
    seen = set()
    for block in (trainer.model.student.vit.layers[0], trainer.model.teacher.vit.layers[0]):
        linear = next(module for module in block.modules() if isinstance(module, nn.Linear))
        linear.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    before = everything(trainer.model, "teacher.")
    trainer.train()
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert not differences(before, everything(trainer.model, "teacher."))


def test_activation_checkpointing_changes_no_result(tmp_path):
    plain, saving = tiny_trainer(tmp_path), tiny_trainer(tmp_path, activation_checkpointing=True)
    runs = []
    layer = saving.model.student.vit.layers[0]
    layer.layernorm_before.register_forward_hook(lambda *_: runs.append(1))
    plain.train()
    saving.train()
    # The student's pass, and once more for its gradients, at each of six steps at the least.
    assert len(runs) >= 12
    for name, tensor in everything(plain.model).items():
        torch.testing.assert_close(everything(saving.model)[name], tensor)


def test_torch_compile_compiles_the_blocks_and_not_the_objective(tmp_path):
    plain = tiny_trainer(tmp_path)
    compiled = tiny_trainer(tmp_path, torch_compile=True, torch_compile_backend="eager")
    units = [unit for network in (compiled.model.teacher, compiled.model.student) for unit in network.vit.layers]
    assert all(unit._compiled_call_impl is not None for unit in units)
    plain.train()
    compiled.train()
    assert compiled.model_wrapped is compiled.objective
    assert compiled.objective._compiled_call_impl is None
    for name, tensor in everything(plain.model).items():
        torch.testing.assert_close(everything(compiled.model)[name], tensor)


def test_a_second_train_goes_on_with_the_same_objective(tmp_path):
    trainer = tiny_trainer(tmp_path, bf16=True, max_steps=2)
    trainer.train()
    forward = trainer.objective.forward
    trainer.train()
    assert trainer.model_wrapped is trainer.objective
    assert trainer.objective.forward is forward


# --- The optimizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_hold_student_and_converters_with_their_rates_and_decays(family, tmp_path):
    trainer = tiny_trainer(tmp_path, family, learning_rate=0.1, converter_lr_scale=0.2, weight_decay=0.3)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(found) == {name for name in names.values() if not name.startswith("teacher.")}
    assert groups[0]["lr"] == 0.1
    modules = dict(trainer.model.named_modules())
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(0.1 if name.startswith("student.") else 0.02)
        is_norm = isinstance(modules[name.rpartition(".")[0]], nn.LayerNorm | nn.BatchNorm2d)
        assert decay == (0.0 if is_norm or name.endswith("bias") else 0.3), name


def test_groups_leave_out_what_is_fixed():
    model = tiny_model("vit")
    for converter in [*model.encoders.values(), *model.decoders.values()]:
        converter.requires_grad_(False)
    groups = parameter_groups(model, set(), learning_rate=1.0)
    assert [len(group["params"]) for group in groups] == [len(list(model.student.parameters()))]


def test_the_scheduler_keeps_the_converters_scale(tmp_path):
    trainer = tiny_trainer(tmp_path, converter_lr_scale=0.5)
    trainer.train(None)
    rates = trainer.lr_scheduler.get_last_lr()
    assert trainer.lr_scheduler.base_lrs == [1e-2, 1e-2, 5e-3, 5e-3]
    assert rates == pytest.approx([0.0] * 4, abs=1e-8)


def test_an_optimizer_that_chooses_the_parameters_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.optimizer_cls_and_kwargs = (torch.optim.SGD, {"params": list(trainer.model.parameters())})
    with pytest.raises(ValueError, match="would take the teacher as well"):
        trainer.create_optimizer()


def test_nothing_to_train_is_refused(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is to be trained"):
        trainer.create_optimizer()


# --- Logs and measurements ----------------------------------------------------------------------------------------


def test_logs_have_the_mean_of_every_term_since_the_last_and_images_a_second(tmp_path):
    weights = {"student_weight": 1.0, "prefix_weight": 0.5, "mask_weight": 2.0, "sync_weight": 0.1, "recon_weight": 0.0}
    trainer = tiny_trainer(tmp_path, objective={**weights, "mask_every": 2})
    seen = []
    trainer.objective.register_forward_hook(lambda module, args, output: seen.append(output))
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert [log["step"] for log in logs] == [2, 4, 6]
    for k, log in enumerate(logs):
        steps = seen[2 * k : 2 * k + 2]
        for name in ("student", "prefix", "mask", "sync"):
            values = [step[name].item() for step in steps if name in step]
            assert len(values) == (1 if name == "mask" else 2)
            assert log[f"loss_{name}"] == pytest.approx(sum(values) / len(values), rel=1e-5)
        assert "loss_recon" not in log
        assert log["loss"] == pytest.approx(sum(step["loss"].item() for step in steps) / 2, rel=1e-5)
        assert 0 < log["samples_per_second"] < math.inf


def test_callbacks_see_the_terms_and_the_model(tmp_path):
    class See(TrainerCallback):
        def on_log(self, args, state, control, logs=None, model=None, **kwargs):
            found.append((model, set(logs)))

    found = []
    trainer = tiny_trainer(tmp_path)
    trainer.add_callback(See())
    trainer.train()
    assert found[0][0] is trainer.model
    assert {"loss", "loss_student", "loss_prefix", "samples_per_second", "learning_rate"} <= found[0][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluate_gives_every_stages_accuracy(family, tmp_path):
    trainer = tiny_trainer(tmp_path, family, eval_images=10)
    trainer.train()
    # Half of the labels are what the student answers, so that the accuracies are not all the same.
    data, model = trainer.eval_dataset, trainer.model.eval()
    data.labels[:5] = model(data.images[:5], sources="SSSS").logits.argmax(-1)
    metrics = trainer.evaluate()
    expected = []
    with torch.no_grad():
        for stage, mask in enumerate(["SSSS", "TSSS", "TTSS", "TTTS", "TTTT"]):
            answers = model(data.images, sources=mask).logits.argmax(-1)
            expected.append((answers == data.labels).float().mean().item())
            assert metrics[f"eval_accuracy_stage_{stage}"] == pytest.approx(expected[-1])
    assert expected[0] >= 0.5
    assert metrics["eval_accuracy"] == pytest.approx(sum(expected) / 5)
    assert metrics["eval_loss"] > 0


def test_evaluate_runs_common_blocks_once(tmp_path):
    trainer = tiny_trainer(tmp_path, eval_images=4)
    runs = []
    for layer in trainer.model.teacher.vit.layers:
        layer.register_forward_hook(lambda *_: runs.append(1))
    trainer.evaluate()
    assert len(runs) == len(trainer.model.teacher.vit.layers)


def test_several_sets_are_measured_by_name(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.eval_dataset = {"one": Pictures("vit", 4), "two": Pictures("vit", 4, seed=3)}
    assert {"eval_one_accuracy_stage_0", "eval_two_accuracy_stage_4"} <= set(trainer.evaluate())


@pytest.mark.parametrize("family", slow_but(["resnet"], FAMILIES))
def test_evaluating_does_not_disturb_training(family, tmp_path):
    def run(**options):
        trainer = tiny_trainer(tmp_path, family, **options)
        for module in trainer.model.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1  # So that training draws random numbers.
        trainer.train()
        return everything(trainer.model)

    assert not differences(run(), run(eval_strategy="steps", eval_steps=1))


def test_evaluating_keeps_mode_and_random_state(tmp_path):
    trainer = tiny_trainer(tmp_path)
    for training in (True, False):
        trainer.model.train(training)
        before = torch.random.get_rng_state()
        trainer.evaluate()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert trainer.model.training == trainer.model.student.training == training
        assert not trainer.model.teacher.training


# --- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fsdp", "full_shard"),
        ("deepspeed", {"zero_optimization": {"stage": 2}}),
        ("bf16_full_eval", True),
        ("label_smoothing_factor", 0.1),
        ("use_liger_kernel", True),
    ],
)
def test_an_option_that_cannot_hold_is_refused_by_name(option, value, tmp_path):
    with pytest.raises(ValueError, match=f"{option} does not apply to PWL models"):
        PWLTrainingArguments(str(tmp_path), use_cpu=True, **{option: value})


def test_a_negative_converter_rate_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"converter_lr_scale must not be negative, got -1"):
        PWLTrainingArguments(str(tmp_path), use_cpu=True, converter_lr_scale=-1.0)


def test_the_best_model_goes_by_accuracy_unless_told_otherwise(tmp_path):
    options = {"use_cpu": True, "eval_strategy": "steps", "load_best_model_at_end": True}
    arguments = PWLTrainingArguments(str(tmp_path), **options)
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("accuracy", True)
    arguments = PWLTrainingArguments(str(tmp_path), **options, metric_for_best_model="accuracy_stage_0")
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == ("accuracy_stage_0", True)
    arguments = PWLTrainingArguments(str(tmp_path), **options, metric_for_best_model="loss")
    assert not arguments.greater_is_better


def test_an_objective_of_another_model_is_refused(tmp_path):
    objective = build_objective(tiny_model("vit"), ObjectiveArguments(), 0)
    arguments = PWLTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="the objective is of another model"):
        PWLTrainer(tiny_model("vit"), arguments, objective, train_dataset=Pictures("vit", 4))


def test_a_model_that_is_not_resident_is_refused(tmp_path):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path / "repo")
    loaded = type(model).from_pretrained(tmp_path / "repo")
    objective = build_objective(loaded, ObjectiveArguments(), 0)
    with pytest.raises(StageError, match="keep_all=True"):
        PWLTrainer(loaded, PWLTrainingArguments(str(tmp_path), use_cpu=True), objective)


def test_a_model_that_could_not_be_saved_is_refused_before_it_is_trained(tmp_path):
    model = tiny_model("vit")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(SaveError, match="would not be saved whole"):
        tiny_trainer(tmp_path, model=model)
