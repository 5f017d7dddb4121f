"""State dicts of a whole model, of a part of one, and of what is not one: nothing is loaded by halves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, load_checkpoint_in_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, default_data_collator
from transformers.trainer_utils import load_sharded_checkpoint

from pwl_hf import PWLError, PWLForImageClassification, StateDictError
from tests.tiny import EACH_FAMILY, tiny_model
from tests.training.tiny_runs import Pictures


def copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(tensor, state[name]) for name, tensor in found.items())


def plain_trainer(model: PWLForImageClassification, family: str, folder: Path, **options: Any) -> Trainer:
    arguments = {
        "max_steps": 2,
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = TrainingArguments(output_dir=str(folder), **(arguments | options))
    return Trainer(model=model, args=args, train_dataset=Pictures(family, 8), eval_dataset=Pictures(family, 4))


# --- What transformers' Trainer does ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_the_weight_file_of_a_checkpoint_is_refused_and_nothing_changed(family, tmp_path):
    tiny_model(family, seed=1).save_pretrained(tmp_path)
    model = tiny_model(family)
    before = copies(model)
    with pytest.raises(StateDictError, match="PWLTrainer"):
        model.load_state_dict(load_file(tmp_path / "model.safetensors"), False)
    assert same(model, before)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_resuming_with_transformers_trainer_is_refused_before_a_step(family, tmp_path):
    plain_trainer(tiny_model(family), family, tmp_path).train()
    model = tiny_model(family, seed=1)
    before = copies(model)
    with pytest.raises(StateDictError, match=r"resume_from_checkpoint.*use PWLTrainer") as refused:
        plain_trainer(model, family, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert isinstance(refused.value, PWLError)
    assert same(model, before)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_the_best_checkpoint_is_refused_by_trainer_and_is_whole_for_from_pretrained(family, tmp_path):
    model = tiny_model(family)
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.01}
    trainer = plain_trainer(model, family, tmp_path, **options)
    with pytest.raises(StateDictError, match=r"load_best_model_at_end.*from_pretrained"):
        trainer.train()
    last = PWLForImageClassification.from_pretrained(tmp_path / "checkpoint-2", keep_all=True)
    assert same(last, copies(model))
    assert Path(str(trainer.state.best_model_checkpoint)).is_dir()


def test_shards_of_another_checkpoint_are_refused(tmp_path):
    model = tiny_model("vit")
    before = copies(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(StateDictError, match="names are not the model's"):
        load_sharded_checkpoint(model, tmp_path / "teacher", strict=False)
    with pytest.raises(StateDictError, match="names are not the model's"):
        load_checkpoint_in_model(model, tmp_path)
    assert same(model, before)


# --- What users do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_whole_state_dict_is_loaded(family, strict):
    model, other = tiny_model(family), tiny_model(family, seed=1)
    found = model.load_state_dict(other.state_dict(), strict=strict)
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert same(model, copies(other))


@pytest.mark.parametrize(
    "prefixes", [("student.classifier.",), ("teacher.",), ("encoders.", "decoders."), ("teacher.", "student."), ("x",)]
)
def test_parts_under_the_models_own_names_are_loaded_and_reported(prefixes):
    model, other = tiny_model("convnext"), tiny_model("convnext", seed=1)
    before, part = copies(model), {n: t for n, t in other.state_dict().items() if n.startswith(prefixes)}
    found = model.load_state_dict(part, strict=False)
    assert set(found.missing_keys) == before.keys() - part.keys()
    assert same(model, before | part)


@pytest.mark.parametrize("stage", [0, 2, 4])
def test_the_state_dict_of_a_stage_goes_back_into_it(stage, tmp_path):
    tiny_model("resnet").save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path, stage=stage)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, strict=False)
    assert same(model, state)
    model.load_state_dict({}, strict=False)


def test_the_weight_file_is_the_whole_of_a_model_at_stage_0(tmp_path):
    tiny_model("resnet").save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    before = copies(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    found = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not found.missing_keys
    assert same(model, before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_a_wrapper_are_refused_rather_than_ignored(prefix):
    model = tiny_model("vit")
    with pytest.raises(StateDictError, match=rf"220 of its 220 names are not the model's, such as {prefix}"):
        model.load_state_dict({prefix + name: tensor for name, tensor in model.state_dict().items()}, strict=False)


def test_blocks_that_are_not_resident_are_refused_rather_than_left_to_the_repository(tmp_path):
    whole = tiny_model("vit")
    whole.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(StateDictError, match="keep_all=True"):
        model.load_state_dict(tiny_model("vit", seed=1).state_dict(), strict=False)
    assert same(model.student, whole.student.state_dict())


def test_the_student_of_a_checkpoint_may_be_loaded_by_its_network():
    model, other = tiny_model("resnet"), tiny_model("resnet", seed=1)
    model.student.load_state_dict(other.student.state_dict())
    assert same(model.student, copies(other.student))


def test_missing_and_unknown_names_are_torchs_error_if_strict():
    model = tiny_model("vit")
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key"):
        model.load_state_dict({"other": torch.ones(1)})


def test_accelerate_restores_the_state_that_it_saved(tmp_path):
    model = tiny_model("vit")
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    before = copies(model)
    accelerator.save_state(str(tmp_path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    accelerator.load_state(str(tmp_path))
    assert same(prepared, before)


# --- Through wrappers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [{"torch_compile": True, "torch_compile_backend": "eager"}, {}])
def test_resuming_a_compiled_model_is_refused_and_its_checkpoints_are_whole(option, tmp_path):
    def run(seed: int) -> Trainer:
        model: Any = tiny_model("vit", seed=seed)
        compiled = model if option else torch.compile(model, backend="eager")
        columns = {"remove_unused_columns": False, "label_names": ["labels"]}
        trainer = plain_trainer(compiled, "vit", tmp_path, **columns, **option)
        trainer.data_collator = without_numbers
        return trainer

    trainer = run(0)
    trainer.train()
    saved = PWLForImageClassification.from_pretrained(tmp_path / "checkpoint-2", keep_all=True)
    assert same(saved, copies(getattr(trainer.model, "_orig_mod", trainer.model)))
    other = run(1)
    before = copies(other.model)
    with pytest.raises(StateDictError, match="PWLTrainer"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(other.model, before)


def without_numbers(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return default_data_collator([{key: item[key] for key in ("pixel_values", "labels")} for item in items])


def test_a_wrapper_loads_its_own_names_and_refuses_a_mixture():
    model, other = tiny_model("vit"), tiny_model("vit", seed=1)
    compiled: Any = torch.compile(model, backend="eager")
    before = copies(model)
    student = {f"_orig_mod.student.{name}": tensor for name, tensor in other.student.state_dict().items()}
    with pytest.raises(StateDictError, match="the student alone"):
        compiled.load_state_dict(student, strict=False)
    assert same(model, before)
    compiled.load_state_dict(torch.compile(other, backend="eager").state_dict())
    assert same(model, copies(other))
    outer = torch.nn.ModuleDict({"pwl": model, "head": torch.nn.Linear(5, 2)})
    outer.load_state_dict({"head.bias": torch.ones(2)}, strict=False)
    assert torch.equal(outer["head"].bias, torch.ones(2))
