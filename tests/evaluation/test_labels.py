"""The data's labels and the model's."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwl_hf.evaluation.labels import check_one_label, class_numbers

ANIMALS = {0: "cat", 1: "dog", 2: "elk"}
UNNAMED = {i: f"LABEL_{i}" for i in range(3)}
UNNAMED_12 = {i: f"LABEL_{i}" for i in range(12)}
TEXT_ORDER = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("names", "model", "expected"),
    [
        (["cat", "dog", "elk"], ANIMALS, [0, 1, 2]),
        (["elk", "cat", "dog"], ANIMALS, [2, 0, 1]),
        (["cat", "dog", "elk"], UNNAMED, [0, 1, 2]),
        (["0", "1", "2"], ANIMALS, [0, 1, 2]),
        # Numbers as strings, sorted as strings: names like any other.
        (["0", "1", "10", "2"], dict(enumerate(["0", "1", "2", "10"])), [0, 1, 3, 2]),
        # A part of the data need not hold the last label.
        (["0", "1"], ANIMALS, [0, 1]),
        (None, ANIMALS, [0, 1, 2]),
        # Case is no difference, unless two names differ in nothing else.
        (["Elk", "CAT", " dog"], ANIMALS, [2, 0, 1]),
        # Class folders as datasets sorts them.
        (["0", "1", "10", "11", *"23456789"], UNNAMED_12, TEXT_ORDER),
        (["0", "1", "10", "11", *"23456789"], {i: f"class {i:02}" for i in range(12)}, TEXT_ORDER),
        ([f"{i:02}" for i in range(12)], UNNAMED_12, list(range(12))),
        ([f"LABEL_{i}" for i in TEXT_ORDER], UNNAMED_12, TEXT_ORDER),
        ([f"LABEL_{i}" for i in (2, 0)], ANIMALS, [2, 0]),
        (["11", "2"], UNNAMED_12, [11, 2]),
        # A model whose own names are numbers: a number is the class of that name.
        (["01", "02", "03"], {0: "3", 1: "1", 2: "2"}, [1, 2, 0]),
        (["1", "3"], {0: "1", 1: "2", 2: "3"}, [0, 2]),
        # Twice the same name, as ImageNet's crane: the bird comes first on both sides.
        (["crane", "dog", "crane"], {0: "crane", 1: "dog", 2: "crane"}, [0, 1, 2]),
    ],
)
def test_numbers_of_the_data_become_the_models_without_a_word(names, model, expected, caplog):
    assert class_numbers(names, model) == expected
    assert caplog.records == []


@pytest.mark.parametrize(
    ("names", "model", "expected", "said"),
    [
        # Another name for the same thing, or another thing: that has to be looked at.
        (["cat", "dog", "fox"], ANIMALS, [0, 1, 2], "label 2 is 'elk' in the model and 'fox' in folder, and 0 more"),
        (["Katze", "Hund", "Elch"], ANIMALS, [0, 1, 2], "label 0 is 'cat' in the model and 'Katze' in folder, and 2"),
        (["cat", "Cat", "elk"], ANIMALS, [0, 1, 2], "label 1 is 'dog' in the model and 'Cat' in folder"),
        (["elk", "cat", "dog"], {0: "0", 1: "1", 2: "2"}, [0, 1, 2], "label 0 is '0' in the model and 'elk' in folder"),
        # Counted from 1.
        (["1", "2", "3"], ANIMALS, [0, 1, 2], "label 0 is 'cat' in the model and '1' in folder"),
        (["1", "3", "2"], UNNAMED, [0, 2, 1], "label 0 is 'LABEL_0' in the model and '1' in folder"),
        # A model that calls its first class 1, and data that calls it 0.
        (["0", "1", "2"], {0: "1", 1: "2", 2: "3"}, [0, 1, 2], "label 0 is '1' in the model and '0' in folder"),
        # Numbers that are neither classes nor places.
        (["10", "20", "30"], ANIMALS, [0, 1, 2], "label 0 is 'cat' in the model and '10' in folder"),
        # The second crane of the data may well be the first of the model.
        (["dog", "crane", "crane"], {0: "crane", 1: "dog", 2: "crane"}, [1, 0, 2], "several labels 'crane'"),
        (["dog", "crane", "bird"], {0: "crane", 1: "dog", 2: "crane"}, [0, 1, 2], "'crane' in the model and 'dog' in"),
    ],
)
def test_labels_that_go_by_their_place_are_told(names, model, expected, said, caplog):
    assert class_numbers(names, model, data="folder") == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.getMessage()


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20, unique_by=str.casefold), st.randoms())
def test_every_order_of_the_models_names_is_undone(names, random):
    shuffled = random.sample(names, len(names))
    numbers = class_numbers(shuffled, dict(enumerate(names)))
    assert [names[number] for number in numbers] == shuffled


@given(st.integers(1, 200), st.randoms(), st.sampled_from(["{}", "{:03}", "LABEL_{}"]), st.data())
def test_numbers_are_classes_in_any_order_and_number(count, random, form, data):
    values = random.sample(range(count), data.draw(st.integers(1, count)))
    for model in ({i: f"LABEL_{i}" for i in range(count)}, {i: f"name of {i}" for i in range(count)}):
        assert class_numbers([form.format(value) for value in values], model) == values


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "message"),
    [
        ("multi_label_classification", 3, "it has problem_type 'multi_label_classification'"),
        ("regression", 3, "it has problem_type 'regression'"),
        (None, 1, "it has num_labels 1"),
        ("regression", 1, "it has num_labels 1"),
    ],
)
def test_models_that_choose_no_label_are_refused(problem_type, num_labels, message):
    with pytest.raises(ValueError, match=f"{message}: accuracy .* need one label of several"):
        check_one_label(SimpleNamespace(problem_type=problem_type, num_labels=num_labels), "it")
    for choosing in (None, "single_label_classification"):
        check_one_label(SimpleNamespace(problem_type=choosing, num_labels=2))


@pytest.mark.parametrize(
    ("names", "model", "message"),
    [
        (["cat", "dog"], ANIMALS, "the data has 2 labels .*the model has 3"),
        (["cat", "dog"], UNNAMED, "the data has 2 labels .*the model has 3"),
        (["cat", "dog", "elk", "fox"], UNNAMED, "the data has 4 labels"),
        (["0", "1", "2", "3"], ANIMALS, "the labels 0 to 3, the model has 3"),
        (["7", "8"], ANIMALS, "the labels 7 to 8, the model has 3 .*label_names"),
    ],
)
def test_other_labels_raise(names, model, message):
    with pytest.raises(ValueError, match=message):
        class_numbers(names, model)


def test_accents_are_the_same_in_either_form_of_unicode():
    composed, apart = "p\u00eache", "pe\u0302che"
    assert class_numbers(["carpe", apart], {0: composed, 1: "carpe"}) == [1, 0]
