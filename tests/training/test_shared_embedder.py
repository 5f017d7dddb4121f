"""A student that has its teacher's embedder is trained around it: frozen, in no optimizer, once in each checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pwl_hf import PWLForSequenceClassification
from pwl_hf.training import train as script
from pwl_hf.training.networks.inheritance import inherit
from pwl_hf.training.networks.network_arguments import NetworkArguments
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.trainer.checkpoints import restore
from pwl_hf.training.trainer.parameter_groups import parameter_groups
from tests.modeling.driven import texts
from tests.modeling.shared_embedders import SHARED, bert, embedder, joined
from tests.modeling.texts import bert_tokenizer

NAMES = ["no", "so", "yes"]
DRIFT = {"teacher_drift": True, "shared_statistics": True}


def frozen(model: PWLForSequenceClassification) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}


def test_the_command_trains_a_student_around_it(tmp_path: Path) -> None:
    teacher, words = (
        bert(4, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)}),
        bert_tokenizer(tmp_path / "words"),
    )
    teacher.save_pretrained(tmp_path / "teacher")
    words.save_pretrained(tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    columns: dict[str, Any] = {
        "text": ["good film", "bad film", "a very w1", "very bad"] * 3,
        "label": ["no", "yes", "so"] * 4,
    }
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "data" / "train.parquet")
    options = ["--dataset", str(tmp_path / "data"), "--teacher", str(tmp_path / "teacher"), "--share_embedder", "true"]
    options += ["--student_preset", "half-depth", "--init_student_from_teacher", "spread", "--num_blocks", "2"]
    options += [
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--per_device_train_batch_size",
        "4",
        "--learning_rate",
        "1e-2",
    ]
    options += ["--disable_tqdm", "true", "--use_cpu", "true", "--report_to", "none", "--eval_split", "train"]
    out = tmp_path / "out"
    parsed = script.command_line().parse([*options, "--output_dir", str(out)])
    assert len(script.train(parsed)) == 3
    # 1. The teacher, its embedder too, is what it was.
    plain = AutoModelForSequenceClassification.from_pretrained(out / "teacher")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name
    # 2. The student has learnt around it.
    model = PWLForSequenceClassification.from_pretrained(out)
    assert model.config.share_embedder
    for name, tensor in embedder(model.student).items():
        assert torch.equal(tensor, embedder(teacher)[name])
    assert not torch.equal(
        model.student.bert.encoder.layer[0].output.dense.weight, teacher.bert.encoder.layer[0].output.dense.weight
    )
    # 3. Each checkpoint has it, on disk once.
    files = [out / "checkpoint-2" / SHARED, out / "checkpoint-4" / SHARED, out / SHARED]
    assert len({file.stat().st_ino for file in files}) == 1
    # 4. A run goes on from one, and ends as it did.
    again = script.command_line().parse(
        [*options, "--output_dir", str(out), "--resume_from_checkpoint", str(files[0].parents[1])]
    )
    expected = (out / "model.safetensors").read_bytes()
    script.train(again)
    assert (out / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize("unfrozen", [False, True])
def test_it_is_in_no_group_whatever_was_done_to_the_student(unfrozen: bool, tmp_path: Path) -> None:
    joined().save_pretrained(tmp_path)
    for model in (joined(), PWLForSequenceClassification.from_pretrained(tmp_path, keep_all=True)):
        if unfrozen:
            model.student.requires_grad_(True)
        groups = parameter_groups(model, (), learning_rate=1.0)
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        assert trained.isdisjoint(map(id, model.teacher.parameters()))
        own = {id(p) for p in model.student.parameters()} - {id(p) for p in model.teacher.parameters()}
        assert own <= trained


def test_a_student_that_begins_as_its_teacher_leaves_it_alone() -> None:
    model = joined()
    before = frozen(model)
    inherit(model, "spread", converters=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    own, given = model.student.bert.encoder.layer[1], model.teacher.bert.encoder.layer[2]
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in own.state_dict().items())


@torch.no_grad()
def test_values_of_a_checkpoint_come_back_around_it(tmp_path: Path) -> None:
    model = joined()
    model.save_pretrained(tmp_path / "first")
    answer = model(**texts()).logits
    for name, parameter in model.named_parameters():
        if name.startswith("student.bert.encoder"):
            parameter.add_(1)
    restore(model, tmp_path / "first")
    assert torch.equal(model(**texts()).logits, answer)
    next(iter(embedder(model.student).values()))[0] += 1
    with pytest.raises(ValueError, match=r"its teacher embedder \(shared with the student\) has other weights"):
        restore(model, tmp_path / "first")
    joined(share=False).save_pretrained(tmp_path / "apart")
    with pytest.raises(ValueError, match="share_embedder is False there, True here"):
        restore(joined(), tmp_path / "apart")


def test_a_teacher_that_drifts_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher_drift does not go with share_embedder"):
        build_objective(joined(), ObjectiveArguments(**DRIFT))
    build_objective(joined(share=False), ObjectiveArguments(**DRIFT))


def test_options_that_cannot_be_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share_embedder does not go with model: 'm' has joined networks"):
        NetworkArguments(model="m", share_embedder=True)
    options = [
        "--dataset",
        "nowhere",
        "--teacher",
        "nowhere",
        "--student_preset",
        "half-depth",
        "--share_embedder",
        "true",
    ]
    options += ["--teacher_drift", "true", "--shared_statistics", "true", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="teacher_drift does not go with share_embedder"):
        script.train(script.command_line().parse([*options, "--use_cpu", "true"]))
