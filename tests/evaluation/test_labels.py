"""The data's labels and the model's."""

from __future__ import annotations

import pytest

from pwl_hf.evaluation.labels import class_numbers

ANIMALS = {0: "cat", 1: "dog", 2: "elk"}
UNNAMED = {i: f"LABEL_{i}" for i in range(3)}


@pytest.mark.parametrize(
    ("names", "model", "expected"),
    [
        (["cat", "dog", "elk"], ANIMALS, [0, 1, 2]),
        (["elk", "cat", "dog"], ANIMALS, [2, 0, 1]),
        (["cat", "dog", "elk"], UNNAMED, [0, 1, 2]),
        (["elk", "cat", "dog"], {0: "0", 1: "1", 2: "2"}, [0, 1, 2]),
        (["0", "1", "2"], ANIMALS, [0, 1, 2]),
        # Numbers as strings, sorted as strings: names like any other.
        (["0", "1", "10", "2"], dict(enumerate(["0", "1", "2", "10"])), [0, 1, 3, 2]),
        # A part of the data need not hold the last label.
        (["0", "1"], ANIMALS, [0, 1]),
        (None, ANIMALS, [0, 1, 2]),
    ],
)
def test_numbers_of_the_data_become_the_models(names, model, expected):
    assert class_numbers(names, model) == expected


@pytest.mark.parametrize(
    ("names", "model", "message"),
    [
        (["cat", "dog", "fox"], ANIMALS, "only the data has 'fox'.*label_names"),
        (["cat", "dog"], ANIMALS, "the data has 2 labels .*the model has 3"),
        (["cat", "dog"], UNNAMED, "the data has 2 labels .*the model has 3"),
        (["cat", "dog", "elk", "fox"], UNNAMED, "the data has 4 labels"),
        (["0", "1", "2", "3"], ANIMALS, "the labels 0 to 3, the model has 3"),
    ],
)
def test_other_labels_raise(names, model, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(names, model)
