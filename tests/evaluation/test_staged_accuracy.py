"""The metric of the `evaluate` library."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from pwl_hf.evaluation import area_over_bytes
from pwl_hf.staged_accuracy import StagedAccuracy
from tests.children import python

PREDICTIONS = [[3, 8, 8], [1, 1, 1], [0, 2, 5], [4, 4, 7]]
REFERENCES = [8, 1, 5, 4]


def test_accuracies_are_the_parts_that_are_right_at_each_stage():
    found = StagedAccuracy().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert found == {"accuracies": [0.5, 0.75, 0.75], "monotone": True}


def test_area_comes_with_the_bytes():
    found = StagedAccuracy().compute(predictions=PREDICTIONS, references=REFERENCES, total_bytes=[10, 50, 100])
    assert found["area_over_bytes"] == area_over_bytes([0.5, 0.75, 0.75], [10, 50, 100])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_batches_add_up(kind):
    metric = StagedAccuracy()
    for rows in (slice(0, 3), slice(3, 4)):
        metric.add_batch(predictions=kind(PREDICTIONS[rows]), references=kind(REFERENCES[rows]))
    assert metric.compute() == StagedAccuracy().compute(predictions=PREDICTIONS, references=REFERENCES)


def test_images_one_by_one_add_up():
    metric = StagedAccuracy()
    for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute()["accuracies"] == [0.5, 0.75, 0.75]


def test_dip_is_not_monotone():
    assert not StagedAccuracy().compute(predictions=[[1, 0, 1]], references=[1])["monotone"]


@pytest.mark.parametrize(
    ("predictions", "references", "options", "message"),
    [
        ([[1, 2], [1]], [1, 1], {}, r"as many for each; got \[1, 2\]"),
        ([[], []], [1, 1], {}, "as many for each"),
        ([], [], {}, "no images"),
        ([[1, 2]], [1, 1], {}, "Mismatch in the number"),
        ([[1, 2]], [1], {"total_bytes": [10]}, "one size a stage, got 1 sizes for 2 stages"),
        ([[1, 2]], [1], {"total_bytes": [10, 5]}, "increases from above 0"),
    ],
)
def test_inputs_that_do_not_fit_raise(predictions, references, options, message):
    with pytest.raises(ValueError, match=message):
        StagedAccuracy().compute(predictions=predictions, references=references, **options)


def test_gathered_through_files_where_asked(tmp_path):
    metric = StagedAccuracy(keep_in_memory=False, cache_dir=str(tmp_path))
    metric.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    assert list(tmp_path.rglob("*.arrow"))
    assert metric.compute()["accuracies"] == [0.5, 0.75, 0.75]


def test_metric_needs_neither_network_nor_a_home_folder():
    code = (
        "import socket\n"
        "def refuse(*_, **__): raise OSError('the network was asked for')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from pwl_hf.staged_accuracy import StagedAccuracy\n"
        "print(StagedAccuracy().compute(predictions=[[1, 2]], references=[2], total_bytes=[1, 4]))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    # Nobody can write there, not even root.
    environment = {**kept, "HOME": "/proc", "HF_HOME": "/proc/huggingface"}
    done = python(code, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'accuracies': [0.0, 1.0], 'monotone': True, 'area_over_bytes': 0.0}"


def test_missing_package_is_named_with_the_extra():
    code = (
        "import sys; sys.modules['evaluate'] = None\n"
        "try: import pwl_hf.staged_accuracy\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = python(code)
    assert done.stdout.startswith("PWLError"), done.stderr
    assert 'pip install "pwl-hf[evaluate]"' in done.stdout


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.9, 0.2]], [1], r"predictions must be class numbers, got 0\.9"),
        ([[1, 0], [float("nan"), 1]], [1, 1], "predictions must be class numbers, got nan"),
        ([[1, 0]], [0.5], r"references must be class numbers, got 0\.5"),
        ([[1, 0]], [[0, 1]], "don't match the expected format"),
        ([[[0.1, 0.9], [0.8, 0.2]]], [1], "predictions must be class numbers"),
    ],
)
def test_scores_are_no_classes(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        StagedAccuracy().add_batch(predictions=predictions, references=references)
    with pytest.raises(
        ValueError, match=message.replace("predictions", "prediction").replace("references", "reference")
    ):
        StagedAccuracy().add(prediction=predictions[-1], reference=references[-1])
    with pytest.raises(ValueError, match=message):
        StagedAccuracy().compute(predictions=predictions, references=references)


def test_whole_numbers_of_any_type_are_classes():
    metric = StagedAccuracy()
    metric.add_batch(predictions=[[1.0, 2.0]], references=[2.0])
    assert metric.compute()["accuracies"] == [0.0, 1.0]
