"""Taggers and classifiers of sounds, measured as pipelines answer; F1 as scikit-learn and seqeval have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score as f1_of_spans
from sklearn.metrics import f1_score
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForTokenClassification,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from pwl_hf import PWLForAudioClassification, PWLForTokenClassification
from pwl_hf.data import DataSource
from pwl_hf.evaluation import Report, evaluate_repository, record_metrics
from pwl_hf.evaluation.plot import plot_report
from pwl_hf.evaluation.scores import are_tags, counts_by_class, macro_f1
from pwl_hf.evaluation.table import print_report
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.quantising import quantise_repository
from pwl_hf.scheduling import schedule_repository
from tests.data.sounds import RATE, encoded, sound_table, tone
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import network_config

TAGS = ["O", "B-PER", "I-PER"]
WORDS = [["good", "film"], ["a", "very", "bad", "film"], ["bad"], ["very", "good", "w1"], ["w2", "goodly", "w4", "a"]]
LABELS = [[1, 0], [0, 1, 2, 0], [2], [0, 0, 1], [1, 2, 2, 0]]


def spread(model: Any) -> None:
    """Answers that differ from mask to mask."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "word_embeddings" in name or "classifier.weight" in name:
                parameter.normal_(0, 3)
            elif parameter.ndim > 1:
                parameter.normal_(0, 0.3)


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: i for i, tag in enumerate(TAGS)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            AutoModelForTokenClassification.from_config(network_config("bert", role, **labels)).eval()
            for role in ("teacher", "student")
        ]
        tokenizer = bert_tokenizer(tmp_path / "words")
        model = PWLForTokenClassification.from_teacher_student(*networks, num_blocks=3, processing_class=tokenizer)
        spread(model)
    model.save_pretrained(tmp_path / "tagger")
    return tmp_path / "tagger"


@pytest.fixture
def words(tmp_path: Path) -> DataSource:
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=TAGS))}
    )
    path = tmp_path / "test.parquet"
    datasets.Dataset.from_dict({"tokens": WORDS, "ner_tags": LABELS}, features=features).to_parquet(path)
    return DataSource(str(path))


def tags_of(repo: Path, stage: int | str) -> list[list[str]]:
    """Word by word, as transformers' own pipeline tags the first token of each."""
    tag = pipeline("token-classification", model=str(repo), model_kwargs={"stage": stage}, ignore_labels=[])
    return [[f["entity"] for f in tag(" ".join(text)) if not f["word"].startswith("##")] for text in WORDS]


def expected_of(repo: Path, stage: int | str) -> dict[str, float]:
    found, wanted = tags_of(repo, stage), [[TAGS[label] for label in row] for row in LABELS]
    own, theirs = ([tag for row in rows for tag in row] for rows in (found, wanted))
    return {
        "accuracy": float(np.mean(np.array(own) == np.array(theirs))),
        "macro_f1": float(f1_score(theirs, own, average="macro")),
        "span_f1": float(f1_of_spans(wanted, found, zero_division=0)),
    }


def scores(report: Report) -> list[dict[str, float]]:
    return [
        {"accuracy": mask.accuracy, "macro_f1": mask.macro_f1, "span_f1": mask.span_f1}
        for mask in report.evaluation.masks
    ]


def test_a_tagger_is_measured_by_its_words_and_spans(
    tagger: Path, words: DataSource, tmp_path: Path, capsys: Any
) -> None:
    report = evaluate_repository(tagger, words, batch_size=2)
    expected = [expected_of(tagger, stage) for stage in range(4)]
    assert scores(report) == [pytest.approx(found) for found in expected]
    assert len({tuple(found.values()) for found in expected}) > 1
    assert (report.dataset.samples, report.dataset.n) == ("words", sum(map(len, WORDS)))
    # All masks in one pass, from a stream, in batches of other sizes.
    streamed = DataSource(words.name, streaming=True)
    together = {
        m.sources: m for m in evaluate_repository(tagger, streamed, orders="all", batch_size=4).evaluation.masks
    }
    assert [together["T" * k + "S" * (3 - k)].span_f1 for k in range(4)] == [
        found["span_f1"] for found in scores(report)
    ]
    print_report(report)
    assert "F1 of spans of the stages, in percent: " in capsys.readouterr().out
    plot_report(report, tmp_path / "words.png")
    record_metrics(tagger, report)
    metrics = Repository.open(tagger).manifest().stages[1].metrics
    assert {metric.name: metric.value for metric in metrics} == pytest.approx(expected[1])
    card = (tagger / "README.md").read_text()
    assert card.count("type: f1") == 8
    assert "name: span_f1, stage 1 (TSS)" in card


def test_a_taggers_order_is_chosen_text_by_text(tagger: Path, words: DataSource) -> None:
    report = schedule_repository(str(tagger), words, "test", target=Target(str(tagger)), dry_run=True)
    assert (report.num_chosen_by, report.num_judged_by, report.samples) == (3, 2, "texts")
    rows = zip(tags_of(tagger, 0), LABELS, strict=True)
    by_text = [np.mean([tag == TAGS[label] for tag, label in zip(*row, strict=True)]) for row in rows]
    assert report.present.accuracies[0] == pytest.approx(np.mean(by_text[1::2]))
    quantise_repository(str(tagger), target=Target(str(tagger)))
    found = evaluate_repository(tagger, words)
    assert [mask.sources for mask in found.evaluation.masks][:3] == ["SSS", "QSS", "QQS"]
    assert found.evaluation.masks[-1].span_f1 == pytest.approx(expected_of(tagger, "teacher")["span_f1"])


def test_sounds_are_measured_as_the_pipeline_answers(tmp_path: Path) -> None:
    names = ["high", "low", "noise"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            AutoModelForAudioClassification.from_config(network_config("wav2vec2", role, **labels)).eval()
            for role in ("teacher", "student")
        ]
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
        model = PWLForAudioClassification.from_teacher_student(*networks, num_blocks=3, processing_class=extractor)
        spread(model)
    model.save_pretrained(tmp_path / "repo")
    waves = [tone(40 * (i + 1), 0.2 + 0.05 * (i % 3)) for i in range(8)]
    path = sound_table(tmp_path / "test.parquet", [encoded(wave) for wave in waves], [i % 3 for i in range(8)], names)
    # One at a time: convolutions with group norm see what a batch pads with.
    report = evaluate_repository(tmp_path / "repo", DataSource(str(path)), batch_size=1)
    for stage, mask in enumerate(report.evaluation.masks):
        classify = pipeline("audio-classification", model=str(tmp_path / "repo"), model_kwargs={"stage": stage})
        found = [classify({"raw": wave, "sampling_rate": RATE}, top_k=1)[0]["label"] for wave in waves]
        assert mask.correct == sum(label == names[i % 3] for i, label in enumerate(found))
        expected = f1_score([names[i % 3] for i in range(8)], found, average="macro")
        assert mask.macro_f1 == pytest.approx(expected)
        assert mask.span_f1 is None
    assert report.dataset.samples == "sounds"


def test_macro_f1_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    for classes in (2, 3, 7):
        labels, answers = draw.integers(0, classes, 40), draw.integers(0, classes, 40)
        # A class that is neither answered nor a label does not count.
        labels[labels == classes - 1] = 0
        found = macro_f1(counts_by_class(answers, labels, classes + 1))
        assert found == pytest.approx(f1_score(labels, answers, average="macro"))
    # No answer is a wrong one.
    assert macro_f1(counts_by_class(np.array([-1, 1]), np.array([0, 1]), 2)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("names", "are"),
    [
        (TAGS, True),
        (["O"], False),
        (["NOUN", "VERB"], False),
        (["B-A", "I-A"], False),
        (["O", "S-X", "E-X", "other"], False),
    ],
)
def test_tags_are_told_from_other_labels(names: list[str], are: bool) -> None:
    assert are_tags(names) is are
