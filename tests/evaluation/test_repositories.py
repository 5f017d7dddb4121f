"""Repositories, in folders and on the Hub, on data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image

from pwl_hf import PWLForImageClassification, RepositoryError
from pwl_hf.data import DataSource, open_split
from pwl_hf.data.digits import image_processor, load_splits
from pwl_hf.data.processing import to_tensor
from pwl_hf.data.stream import PixelStream
from pwl_hf.evaluation import dataset_title, evaluate_repository, masks_of, record_metrics, repositories
from pwl_hf.modeling.repository.source import Repository
from tests.repository.helpers import publish, tree

DIGITS = DataSource("digits")
FEW = DataSource("digits", max_samples=60)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """40 of the digits as a parquet file, their labels' names turned round."""
    images, labels = load_splits()[1]
    features = Features({"image": Image(), "label": ClassLabel(names=[str(9 - i) for i in range(10)])})
    data = {"image": images[:40], "label": [9 - label for label in labels[:40]]}
    path = tmp_path_factory.mktemp("data") / "digits" / "test.parquet"
    path.parent.mkdir()
    Dataset.from_dict(data, features=features).to_parquet(path)
    return path


@torch.no_grad()
def expected(folder, images, labels):
    """The right answers of every stage, of one pass over all images."""
    model, pixel_values = PWLForImageClassification.from_pretrained(folder), to_tensor(images, image_processor())
    found = []
    for stage in range(5):
        model.set_stage(stage)
        found.append(int((model(pixel_values).logits.argmax(-1) == torch.tensor(labels)).sum()))
    return found


def test_stages_are_counted_as_by_hand(saved):
    report = evaluate_repository(saved, DIGITS)
    images, labels = load_splits()[1]
    counts = [mask.correct for mask in report.evaluation.masks]
    assert counts == expected(saved, images, labels)
    assert len(set(counts)) > 2
    assert [mask.total for mask in report.evaluation.masks] == [719] * 5
    sizes = [sum(entry.bytes for entry in stage.files) for stage in Repository.open(saved).manifest().stages]
    assert report.total_bytes == tuple(sum(sizes[: k + 1]) for k in range(5))
    steps = [c / 719 * size for c, size in zip(counts, sizes[1:], strict=False)]
    assert report.area == pytest.approx(sum(steps) / sum(sizes))


def test_images_kept_or_read_anew_give_the_same(saved, monkeypatch):
    kept = evaluate_repository(saved, FEW)
    monkeypatch.setattr(repositories, "_KEPT_BYTES", 60 * 3 * 8 * 8 * 4 - 1)
    monkeypatch.setattr("pwl_hf.data.split.PixelsInMemory", None)
    assert evaluate_repository(saved, FEW).evaluation == kept.evaluation


@pytest.mark.parametrize("orders", ["suffix", "contiguous", "all"])
def test_other_orders_agree_with_the_stages(saved, orders):
    report, stages = evaluate_repository(saved, FEW, orders=orders), evaluate_repository(saved, FEW)
    assert [mask.sources for mask in report.evaluation.masks] == masks_of(orders, 4)
    assert report.evaluation["SSSS"] == stages.evaluation["SSSS"]
    assert report.evaluation["TTTT"].correct == stages.evaluation["TTTT"].correct
    whole = orders == "all"
    assert report.area == (stages.area if whole else None)
    assert report.monotone == (stages.monotone if whole else None)
    if whole:
        assert report.stages == list(stages.evaluation.masks)


def test_names_of_the_data_in_another_order_are_brought_into_the_models(saved, parquet):
    images, labels = load_splits()[1]
    for source in (DataSource(str(parquet)), DataSource(str(parquet), streaming=True)):
        report = evaluate_repository(saved, source, "test")
        assert [mask.correct for mask in report.evaluation.masks] == expected(saved, images[:40], labels[:40])


def test_stream_is_read_once(saved, parquet, monkeypatch):
    reads = []
    real = PixelStream._file
    monkeypatch.setattr(PixelStream, "_file", lambda self, *numbers: reads.append(numbers) or real(self, *numbers))
    evaluate_repository(saved, DataSource(str(parquet), streaming=True), "test")
    assert reads == [(0, 1)]


def test_everything_comes_from_the_commit_of_the_start(hub, repo_id, saved, monkeypatch):
    commit = publish(hub, repo_id, saved)
    here = evaluate_repository(saved, FEW)

    def moving(*arguments):
        # The branch moves on when the first files are there.
        publish(hub, repo_id, saved.parent, message="other")
        return open_split(*arguments)

    monkeypatch.setattr(repositories, "open_split", moving)
    report = evaluate_repository(repo_id, FEW)
    assert hub.store.commits(repo_id)[0].oid != commit
    assert (report.repository.name, report.repository.commit) == (repo_id, commit)
    assert report.evaluation == here.evaluation
    assert here.repository.commit is None


def test_subfolder_is_evaluated(hub, repo_id, saved):
    publish(hub, repo_id, saved, "small/digits")
    report = evaluate_repository(repo_id, FEW, subfolder="small/digits")
    assert report.evaluation == evaluate_repository(saved, FEW).evaluation
    assert report.repository.subfolder == "small/digits"


def test_json_says_what_how_and_with_what(saved):
    report = evaluate_repository(saved, FEW, orders="all", batch_size=16)
    data = json.loads(report.to_json())
    assert data["schema_version"] == 1
    fingerprint = Repository.open(saved).manifest().fingerprint
    assert data["repository"] == {"name": str(saved), "subfolder": "", "commit": None, "fingerprint": fingerprint}
    assert data["dataset"] == {
        "name": "digits",
        "config": None,
        "revision": None,
        "split": "test",
        "max_samples": 60,
        "n": 60,
        "samples": "images",
    }
    assert data["settings"] == {"device": "cpu", "dtype": "float32", "batch_size": 16}
    assert data["versions"]["torch"] == version("torch")
    assert [row["sources"] for row in data["masks"]] == masks_of("all", 4)
    for row, mask in zip(data["masks"], report.evaluation.masks, strict=True):
        assert row["accuracy"] == row["correct"] / 60 == mask.accuracy
        assert row["interval"] == list(mask.interval)
        assert (row["stage"] is None) == (row["total_bytes"] is None)
    row = next(row for row in data["masks"] if row["sources"] == "TTSS")
    assert (row["stage"], row["total_bytes"]) == (2, report.total_bytes[2])
    assert (row["over_student"]["reference"], row["over_previous"]["reference"]) == ("SSSS", "TSSS")
    assert row["over_student"]["difference"] == pytest.approx(row["accuracy"] - data["masks"][0]["accuracy"])
    assert data["below_student"] == [r["sources"] for r in data["masks"] if r["correct"] < data["masks"][0]["correct"]]


def test_recorded_metrics_stand_in_manifest_and_card(folder):
    before = tree(folder)
    report = evaluate_repository(folder, FEW)
    record_metrics(folder, report)
    stages = Repository.open(folder).manifest().stages
    assert [stage.metrics[0].value for stage in stages] == report.evaluation.accuracies
    assert [metric.name for metric in stages[0].metrics] == ["accuracy", "macro_f1"]
    assert stages[2].metrics[1].value == report.evaluation.masks[2].macro_f1
    metric = stages[0].metrics[0]
    assert (metric.name, metric.dataset, metric.split, metric.n) == ("accuracy", "scikit-learn digits", "test", 60)
    card = (folder / "README.md").read_text()
    assert all(f"{value:.4f}" in card for value in report.evaluation.accuracies)
    after = tree(folder)
    assert {path for path in after if after[path] != before.get(path)} == {"README.md", "pwl_index.json"}
    # Measured again, they are replaced.
    record_metrics(folder, evaluate_repository(folder, DIGITS, orders="all"))
    assert [[metric.n for metric in stage.metrics[:1]] for stage in Repository.open(folder).manifest().stages] == [
        [719]
    ] * 5


def test_metrics_of_other_weights_orders_or_dtypes_are_not_recorded(folder):
    report, before = evaluate_repository(folder, FEW), tree(folder)
    other = replace(report, repository=replace(report.repository, fingerprint="0" * 64))
    with pytest.raises(RepositoryError, match="holds other weights"):
        record_metrics(folder, other)
    with pytest.raises(ValueError, match="the order 'suffix' lacks some"):
        record_metrics(folder, evaluate_repository(folder, FEW, orders="suffix"))
    with pytest.raises(ValueError, match="in float32, not in bfloat16"):
        record_metrics(folder, evaluate_repository(folder, FEW, dtype="bfloat16"))
    assert tree(folder) == before


def test_repository_without_image_processor_raises(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(RepositoryError, match=r"no image processor .*save the teacher's"):
        evaluate_repository(folder, FEW)


def test_unknown_order_raises_before_anything_is_opened(tmp_path):
    with pytest.raises(ValueError, match="orders must be one of prefix, suffix, contiguous, all, got 'random'"):
        evaluate_repository(tmp_path / "nowhere", FEW, orders="random")


def test_titles_tell_no_path_and_are_no_ids_unless_they_are(tmp_path):
    (tmp_path / "cifar10").mkdir()
    assert dataset_title("digits") == "scikit-learn digits"
    assert dataset_title("uoft-cs/cifar10") == "uoft-cs/cifar10"
    assert dataset_title(str(tmp_path / "cifar10")) == "cifar10 (local files)"
    assert dataset_title(str(tmp_path / "cifar10" / "*.parquet")) == "cifar10 (local files)"
