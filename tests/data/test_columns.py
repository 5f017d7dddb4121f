"""Which column is which, and the numbers of the labels: on features alone, without data."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Features, Image, Sequence, Value

from pwl_hf.data.columns import find_image_column, find_label_column, label_encoding
from pwl_hf.data.errors import DataError

CLASSES = ClassLabel(names=["cat", "dog"])
ENCODED = {"bytes": Value("binary"), "path": Value("string")}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"img": Image(), "label": CLASSES}, "img"),
        ({"picture": Image(decode=False), "bytes": Value("binary")}, "picture"),
        ({"mask": Image(), "image": Image()}, "image"),
        ({"photo": ENCODED, "label": Value("int64")}, "photo"),
        ({"photo": Value("binary"), "label": Value("int64")}, "photo"),
        ({"thumb": Value("binary"), "image": ENCODED}, "image"),
    ],
)
def test_image_column_is_found(columns, expected):
    assert find_image_column(Features(columns), None, "it") == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"left": Image(), "right": Image()},
            r"it has several columns of images, 'left', 'right'; its columns are 'left' \(Image\), "
            r"'right' \(Image\): give image_column",
        ),
        ({"image": Image(), "img": Image()}, "several columns of images"),
        (
            {"text": Value("string"), "label": CLASSES},
            r"it has no column known to hold images; its columns are 'text' \(string\), 'label' \(ClassLabel\): "
            "give image_column",
        ),
    ],
)
def test_image_column_not_to_be_told_raises(columns, message):
    with pytest.raises(DataError, match=message):
        find_image_column(Features(columns), None, "it")


def test_given_columns_are_taken_or_refused_by_name_and_type():
    features = Features({"a": Image(), "b": Image(), "c": CLASSES, "d": Value("int8"), "e": Sequence(Value("int8"))})
    assert find_image_column(features, "b", "it") == "b"
    assert find_label_column(features, "b", "d", "it") == "d"
    with pytest.raises(DataError, match=r"it has no column 'x' for image_column; it has 'a' \(Image\), "):
        find_image_column(features, "x", "it")
    with pytest.raises(DataError, match="image_column 'd' of it holds no images"):
        find_image_column(features, "d", "it")
    with pytest.raises(DataError, match="no column 'x' for label_column"):
        find_label_column(features, "a", "x", "it")
    with pytest.raises(DataError, match="label_column 'e' of it must hold ClassLabels, whole numbers or strings"):
        find_label_column(features, "a", "e", "it")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"kind": CLASSES, "label": Value("int64")}, "kind"),
        ({"coarse_label": CLASSES, "fine_label": CLASSES}, "fine_label"),
        ({"class": Value("string"), "id": Value("int64")}, "class"),
        ({"labels": Value("uint8")}, "labels"),
        ({"score": Value("float32")}, None),
        ({}, None),
    ],
)
def test_label_column_is_found(columns, expected):
    assert find_label_column(Features({"image": Image(), **columns}), "image", None, "it") == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"breed": CLASSES, "colour": CLASSES}, "several columns of labels, 'breed', 'colour'.*: give label_column"),
        ({"label": Value("int64"), "class": Value("string")}, "several columns of labels, 'label', 'class'"),
        # A caption or a label? To train without labels has to be meant.
        ({"target": Value("int64")}, "no column known to hold labels.*give label_column; without labels, unl"),
    ],
)
def test_label_column_not_to_be_told_raises(columns, message):
    with pytest.raises(DataError, match=message):
        find_label_column(Features({"image": Image(), **columns}), "image", None, "it")


def numbers(encoding, values):
    return [encoding(value, row, "it") for row, value in enumerate(values)]


def test_names_of_the_features_number_the_labels():
    encoding = label_encoding(CLASSES, None, None, "it")
    assert encoding.names == ("cat", "dog")
    assert numbers(encoding, [1, 0]) == [1, 0]
    for value in (-1, 2, None):
        with pytest.raises(DataError, match=f"row 7 of it has the label {value!r}, which is none of 0, 1"):
            encoding(value, 7, "it")


def test_the_same_names_in_another_order_number_the_labels_anew():
    encoding = label_encoding(CLASSES, ["owl", "dog", "cat"], None, "it")
    assert encoding.names == ("owl", "dog", "cat")
    assert numbers(encoding, [0, 1]) == [2, 1]


def test_other_names_for_as_many_labels_keep_the_numbers():
    encoding = label_encoding(CLASSES, ["Katze", "Hund"], None, "it")
    assert encoding.names == ("Katze", "Hund")
    assert numbers(encoding, [0, 1]) == [0, 1]


@pytest.mark.parametrize("given", [["cat"], ["cat", "owl"], ["a", "b", "c"]])
def test_names_that_fit_neither_way_raise(given):
    with pytest.raises(
        DataError, match=r"it has 2 labels, 'cat', 'dog'; .* neither these in another order nor as many"
    ):
        label_encoding(CLASSES, given, None, "it")


def test_strings_are_numbered_in_their_order_or_as_given():
    values = ["owl", "cat", "owl", "dog"]
    encoding = label_encoding(Value("string"), None, values, "it")
    assert encoding.names == ("cat", "dog", "owl")
    assert numbers(encoding, values) == [2, 0, 2, 1]
    encoding = label_encoding(Value("string"), ["owl", "cat"], values, "it")
    with pytest.raises(DataError, match="row 3 of it has the label 'dog', which is none of 'owl', 'cat'"):
        numbers(encoding, values)
    with pytest.raises(DataError, match="a stream does not tell all: give label_names"):
        label_encoding(Value("string"), None, None, "it")


@pytest.mark.parametrize("form", ["{}", "{:02}", "LABEL_{}"])
def test_classes_and_strings_that_are_numbers_are_in_the_order_of_their_values(form):
    by_value = [form.format(number) for number in range(12)]
    for names in (sorted(by_value), by_value[::-1]):
        encoding = label_encoding(ClassLabel(names=names), None, None, "it")
        assert encoding.names == tuple(by_value)
        assert numbers(encoding, range(12)) == [by_value.index(name) for name in names]
        encoding = label_encoding(Value("string"), None, names, "it")
        assert encoding.names == tuple(by_value)
        assert numbers(encoding, names) == [by_value.index(name) for name in names]


def test_new_names_of_classes_that_are_numbers_go_by_their_values():
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    folders = sorted(map(str, range(12)))
    encoding = label_encoding(ClassLabel(names=folders), words, None, "it")
    assert [words[number] for number in numbers(encoding, range(12))] == [words[int(name)] for name in folders]


def test_two_labels_of_one_name_go_by_their_place():
    names = ["crane", "dog", "crane"]
    for feature in (Value("int64"), ClassLabel(names=["n1", "n2", "n3"])):
        encoding = label_encoding(feature, names, [0, 1, 2], "it")
        assert encoding.names == tuple(names)
        assert numbers(encoding, [2, 0, 1]) == [2, 0, 1]
    with pytest.raises(DataError, match="are strings, so label_names must be different: got 'crane', 'dog', 'crane'"):
        label_encoding(Value("string"), names, ["crane"], "it")
    with pytest.raises(DataError, match="neither these in another order nor as many new ones"):
        label_encoding(CLASSES, ["cat", "dog", "dog"], None, "it")


def test_whole_numbers_are_labels_themselves():
    encoding = label_encoding(Value("int64"), None, [0, 3, 1], "it")
    assert encoding.names == ("0", "1", "2", "3")
    assert numbers(encoding, [0, 3, 1]) == [0, 3, 1]
    assert label_encoding(Value("int64"), ["a", "b"], [1], "it").names == ("a", "b")
    stream = label_encoding(Value("int64"), None, None, "it")
    assert stream.names is None
    assert numbers(stream, [4, 0]) == [4, 0]
    for value in (-1, None):
        with pytest.raises(DataError, match="which is no label"):
            stream(value, 0, "it")


def test_many_names_are_not_all_listed():
    encoding = label_encoding(ClassLabel(num_classes=1000), None, None, "it")
    with pytest.raises(DataError, match=r"none of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\. \(1000 in all\)"):
        encoding(-1, 0, "it")
