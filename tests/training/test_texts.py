"""Training over padded batches: padding counts for nothing, and a checkpoint is a repository with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pwl_hf import PWLForAudioClassification, PWLForSequenceClassification
from pwl_hf.data import DataSource, open_split
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.losses import feature_distance
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.trainer.pwl_trainer import PWLTrainer
from pwl_hf.training.trainer.training_arguments import PWLTrainingArguments
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import batch, network_config

EVERY_TERM = ObjectiveArguments(mask_count=2, normalize_features=True)


def text_model(teacher: str = "bert", student: str = "distilbert") -> PWLForSequenceClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            AutoModelForSequenceClassification.from_config(network_config(name, role))
            for name, role in ((teacher, "teacher"), (student, "student"))
        ]
        return PWLForSequenceClassification.from_teacher_student(*networks, num_blocks=3).eval()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_distance_is_over_the_tokens_that_are_kept(normalize: bool) -> None:
    features, target = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    kept = torch.tensor([[True, True, True, False, False], [True, True, True, True, True]])
    rows = [(features[row][kept[row]], target[row][kept[row]]) for row in range(2)]
    cosine = torch.stack([torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) for one, other in rows]).mean()
    # A mean over samples, so that two processes have that of one.
    error = torch.stack([torch.nn.functional.mse_loss(*row) for row in rows]).mean()
    power = torch.stack([other.square().mean() for _, other in rows]).mean()
    expected = (error / power if normalize else error) + 1 - cosine
    assert torch.allclose(feature_distance(features, target, normalize, kept), expected)
    whole = feature_distance(features, target, normalize)
    assert torch.allclose(feature_distance(features, target, normalize, kept | True), whole)


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_more_padding_changes_no_term(normalize: bool) -> None:
    model = text_model()
    objective = build_objective(model, ObjectiveArguments(mask_count=2, normalize_features=normalize))
    inputs, labels = batch("bert"), torch.tensor([0, 1, 2])
    longer = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    short, padded = (objective(given, labels, step=0) for given in (inputs, longer))
    assert {"student", "prefix", "mask", "sync", "recon"} <= short.keys()
    for name, value in short.items():
        assert torch.allclose(value, padded[name], rtol=1e-4), name


@pytest.mark.parametrize("share", [1, 2])
def test_features_of_some_samples_keep_their_own_padding(share: int) -> None:
    model = text_model()
    options = {"prefix_weight": 0.0, "mask_weight": 0.0, "feature_share": share}
    found = build_objective(model, ObjectiveArguments(**options))(batch("bert"), torch.tensor([0, 1, 2]), step=0)
    rows = [0, 1, 2][::share]
    inputs = {name: tensor[rows] for name, tensor in batch("bert").items()}
    alone = build_objective(model, ObjectiveArguments(**options | {"feature_share": 1}))
    expected = alone(inputs, torch.tensor([0, 1, 2])[rows], step=0)
    for name in ("sync", "recon"):
        assert torch.allclose(found[name], expected[name], rtol=1e-4)


def test_sounds_are_trained_on() -> None:
    from transformers import AutoModelForAudioClassification

    networks = [
        AutoModelForAudioClassification.from_config(network_config("wav2vec2", role)) for role in ("teacher", "student")
    ]
    model = PWLForAudioClassification.from_teacher_student(*networks, num_blocks=3).train()
    objective = build_objective(model, EVERY_TERM).train()
    objective(batch("wav2vec2"), torch.tensor([0, 1, 2]), step=0)["loss"].backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"encoders.1.weight", "decoders.2.weight", "student.classifier.weight"} <= names
    assert not any(name.startswith("teacher.") for name in names)


def test_a_run_over_texts_learns_and_saves_repositories(tmp_path: Path) -> None:
    texts = ["good film", "bad film", "a very good w1", "very bad", "good w2", "bad a w3 w4 w5", "good good", "bad"] * 2
    labels = [0, 1] * 8
    datasets.Dataset.from_dict({"text": texts, "label": labels}).to_parquet(tmp_path / "train.parquet")
    tokenizer, model = bert_tokenizer(tmp_path / "words"), text_model()
    data = open_split(DataSource(str(tmp_path / "train.parquet")), "train", "texts").tokenized(tokenizer)
    options: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_steps": 24,
        "learning_rate": 1e-2,
        "save_steps": 24,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = PWLTrainingArguments(output_dir=str(tmp_path / "out"), **options)
    trainer = PWLTrainer(
        model,
        arguments,
        build_objective(model, ObjectiveArguments(alpha=1.0)),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        data_collator=data.collate,
    )
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * first
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    saved = PWLForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-24")
    found = AutoTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-24")
    assert found(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    given = found(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        for mask in ("SSS", "TTS", "TTT"):
            saved.set_sources(mask)
            assert torch.equal(saved(**given).logits, model.eval()(**given, sources=mask).logits)
