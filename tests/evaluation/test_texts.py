"""Texts, from a file to the accuracy of each stage."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from pwl_hf import PWLForSequenceClassification
from pwl_hf.cli import main
from pwl_hf.data import DataError, DataSource, TextSplit, open_split
from pwl_hf.evaluation import evaluate_masks, evaluate_repository, evaluate_stages, record_metrics
from pwl_hf.modeling.errors import RepositoryError
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.quantising import quantise_repository
from pwl_hf.scheduling import schedule_repository
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import network_config

TEXTS = ["good film", "a very bad film", "bad", "very very good", "w1 w2 w3", "a", "goodly", "film film bad w9 w4"]
NAMES = ["bad", "so-so", "good"]
LABELS = [2, 0, 0, 2, 1, 1, 2, 0]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A parquet file of texts with named labels."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    path = tmp_path / "test.parquet"
    datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS}, features=features).to_parquet(path)
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A BERT with a DistilBERT, of answers that differ from mask to mask."""
    labels = {"id2label": dict(enumerate(reversed(NAMES))), "label2id": {n: i for i, n in enumerate(reversed(NAMES))}}
    configs = network_config("bert", "teacher", **labels), network_config("distilbert", "student", **labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [AutoModelForSequenceClassification.from_config(config).eval() for config in configs]
        tokenizer = bert_tokenizer(tmp_path / "words")
        model = PWLForSequenceClassification.from_teacher_student(*networks, num_blocks=3, processing_class=tokenizer)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "word_embeddings" in name or "classifier.weight" in name:
                    parameter.normal_(0, 3)
                elif parameter.ndim > 1:
                    parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "repo")
    return tmp_path / "repo"


def right(repo: Path, stage: int | str) -> list[bool]:
    """Text by text, as transformers' own pipeline answers."""
    classify = pipeline("text-classification", model=str(repo), model_kwargs={"stage": stage})
    return [found["label"] == NAMES[label] for found, label in zip(classify(TEXTS), LABELS, strict=True)]


def test_each_stage_is_as_accurate_as_the_pipelines_answers(repo: Path, texts: Path) -> None:
    report = evaluate_repository(repo, DataSource(str(texts)), batch_size=3)
    expected = [sum(right(repo, stage)) for stage in range(4)]
    assert [mask.correct for mask in report.evaluation.masks] == expected
    assert len(set(expected)) > 1
    assert (report.dataset.samples, report.dataset.n) == ("texts", 8)
    # Every mask in one pass, in batches of other sizes.
    together = evaluate_repository(repo, DataSource(str(texts)), orders="all", batch_size=8)
    stages = {mask.sources: mask.correct for mask in together.evaluation.masks}
    assert [stages["T" * k + "S" * (3 - k)] for k in range(4)] == expected
    record_metrics(repo, report)
    assert Repository.open(repo).manifest().stages[3].metrics[0].value == expected[3] / 8
    assert "8 texts" in (repo / "README.md").read_text()


def test_a_model_and_a_folder_are_measured_alike(repo: Path, texts: Path) -> None:
    model = PWLForSequenceClassification.from_pretrained(repo, keep_all=True)
    data = open_split(DataSource(str(texts)), "test", "texts").tokenized(bert_tokenizer(repo.parent / "words"))
    by_model = evaluate_masks(model, data, model.schedule, label_names=NAMES, batch_size=3)
    by_folder = evaluate_stages(repo, data, label_names=NAMES, batch_size=5)
    assert [mask.correct for mask in by_model.masks] == [mask.correct for mask in by_folder.masks]


def test_the_command_measures_texts(
    repo: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    command = ["pwl-hf", "evaluate", str(repo), "--dataset", str(texts), "--quiet", "-o", str(found), "--write-metrics"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert f"8 texts: {texts}, split test." in capsys.readouterr().out
    assert json.loads(found.read_text())["dataset"]["samples"] == "texts"


def test_low_precision_and_the_order_of_blocks_are_of_texts_too(repo: Path, texts: Path) -> None:
    source = DataSource(str(texts))
    report = schedule_repository(repo, source, "test", target=Target(str(repo)), dry_run=True)
    assert (report.best.masks[0], report.best.masks[-1]) == ("SSS", "TTT")
    quantise_repository(repo, target=Target(str(repo)))
    found = evaluate_repository(repo, source)
    assert [mask.sources for mask in found.evaluation.masks][:4] == ["SSS", "QSS", "QQS", "QQQ"]
    assert found.evaluation.masks[-1].correct == sum(right(repo, "teacher"))


# --- Columns and tokens -----------------------------------------------------------------------------------------


def write(path: Path, **columns: Any) -> DataSource:
    datasets.Dataset.from_dict(columns).to_parquet(path)
    return DataSource(str(path))


def test_a_batch_is_padded_to_its_longest_text(texts: Path, tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path / "words")
    split = open_split(DataSource(str(texts)), "test", "texts")
    assert isinstance(split, TextSplit)
    assert (split.label_names, split.column, split.label_column, split.num_rows) == (NAMES, "text", "label", 8)
    data = split.tokenized(tokenizer)
    batch = data.collate([data[row] for row in (0, 2)])
    expected = tokenizer([TEXTS[0], TEXTS[2]], padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert (batch["labels"].tolist(), batch["sample_ids"].tolist()) == ([2, 0], [0, 2])
    assert batch["input_ids"].shape == (2, 4)


def test_pairs_are_read_together(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path / "words")
    source = write(tmp_path / "a.parquet", premise=["good", "bad"], hypothesis=["a film", "bad film"], label=[0, 1])
    with pytest.raises(DataError, match=r"several columns of texts, 'premise', 'hypothesis'; .*: give text_column"):
        open_split(source, "train", "texts")
    both = DataSource(source.name, text_column="premise", text_pair_column="hypothesis")
    item = open_split(both, "train", "texts").tokenized(tokenizer)[1]
    assert item["input_ids"] == tokenizer("bad", "bad film")["input_ids"]
    assert sum(item["token_type_ids"]) == 3


def test_long_texts_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / "a.parquet", text=["good", "bad " * 50, "film " * 9], label=[0, 1, 1])
    split = open_split(source, "train", "texts")
    tokenizer = bert_tokenizer(tmp_path / "words")
    with caplog.at_level(logging.WARNING):
        assert [len(item["input_ids"]) for item in split.tokenized(tokenizer)] == [3, 32, 11]
    assert "1 of 3 texts of split 'train'" in caplog.text
    assert [len(item["input_ids"]) for item in split.tokenized(tokenizer, max_length=8)] == [3, 8, 8]


@pytest.mark.parametrize(
    ("columns", "options", "reason"),
    [
        ({"number": [1, 2], "label": [0, 1]}, {}, "no column known to hold texts"),
        ({"text": ["a", "b"], "label": [0, 1]}, {"text_column": "body"}, "has no column 'body'"),
        ({"text": ["a", "b"], "label": [0, 1]}, {"text_column": "label"}, "'label' of .* holds no texts"),
        ({"text": ["a", "b"], "label": [0, 1]}, {"text_pair_column": "second"}, "has no column 'second'"),
        ({"text": ["a", None], "label": [0, 1]}, {}, "row 1 of .* has no text in 'text', but None"),
    ],
)
def test_what_holds_no_texts_is_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    path = write(tmp_path / "a.parquet", **columns).name
    with pytest.raises(DataError, match=reason):
        open_split(DataSource(path, **options), "train", "texts").tokenized(bert_tokenizer(tmp_path / "words"))


def test_string_labels_are_not_taken_for_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", utterance=["good", "bad"], label=["b", "a"])
    split = open_split(source, "train", "texts")
    assert (split.column, split.label_names, split.labels.tolist()) == ("utterance", ["a", "b"], [1, 0])


# --- What cannot be measured ------------------------------------------------------------------------------------


def test_without_a_tokenizer_texts_are_refused(repo: Path, texts: Path) -> None:
    (repo / "tokenizer_config.json").unlink()
    with pytest.raises(RepositoryError, match=r"has no tokenizer \(tokenizer_config.json\)"):
        evaluate_repository(repo, DataSource(str(texts)))
