"""Whether a data set's labels are a model's, and how its numbers become the model's (pure Python)."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pwl_hf.data.names import numbers_of

logger = logging.getLogger(__name__)


def class_numbers(
    label_names: Sequence[str] | None,
    id2label: Mapping[int, str],
    *,
    data: str = "the data",
    model: str = "the model",
) -> list[int]:
    """The model's number of each of the data's labels.

    1. By name, if the data has all of the model's names and no others, whatever their order, case or form of accents.
       Of a name that several classes have, the first of the data's is the first of the model's, and so on.
    2. By value, if all of the data's names are numbers (`"7"`, `"07"`, `"LABEL_7"`): 7 is the model's class 7, or the
       one it calls 7 if all of its own names are numbers too. Some of the numbers are enough.
    3. By place, in the data's order, with a warning that names both sides (none for a model that was never given names,
       whose classes are called `LABEL_0` and so on). The numbers from 1 to that of the classes are places, too.

    Args:
        label_names: The names of the data's labels in the order of their numbers; None if they have none.
        id2label: The model's.
        data: What errors and warnings call the data.
        model: What they call the model.

    Returns:
        A number for each label of the data; all numbers of the model if their count is not known.

    Raises:
        ValueError: If the labels cannot be the model's: others in number, or numbers above the model's.

    Example:

        >>> class_numbers(["dog", "cat"], {0: "cat", 1: "dog"})
        [1, 0]
        >>> class_numbers(["0", "1", "2"], {0: "ant", 1: "bee", 2: "cat"})
        [0, 1, 2]
    """
    count = len(id2label)
    if label_names is None:
        return list(range(count))
    names = [str(id2label[number]) for number in range(count)]
    # 1. By name. Of several labels of one name the order is all there is to go by: another than the model's is said.
    if (found := _by_name(label_names, names)) is not None:
        if len(set(names)) < count and found != list(range(count)):
            repeated = Counter(names).most_common(1)[0][0]
            logger.warning("%s and %s have several labels %r: they are taken in their order", data, model, repeated)
        return found
    # 2. By value, if the model's names are numbers too, or name things and so say nothing of numbers.
    numbers, own = numbers_of(label_names), numbers_of(names)
    place = {number: i for i, number in enumerate(own or range(count))}
    if numbers is not None and place.keys() >= set(numbers):
        return [place[number] for number in numbers]
    # 3. By place: of numbers that are places, or places counted from 1, or of as many labels in the data's order.
    if numbers is not None and set(numbers) <= set(range(count)):
        found = numbers
    elif numbers is not None and set(numbers) == set(range(1, count + 1)):
        found = [number - 1 for number in numbers]
    elif len(label_names) == count:
        found = list(range(count))
    elif numbers is not None:
        raise ValueError(
            f"{data} has the labels {min(numbers)} to {max(numbers)}, {model} has {count} labels: give the data's "
            "labels the model's names with label_names"
        )
    else:
        raise ValueError(
            f"{data} has {len(label_names)} labels ({_some(label_names)}), {model} has {count} ({_some(names)}): "
            "where the data lacks some of the model's, give it all of the model's names with label_names"
        )
    different = [i for i, number in enumerate(found) if names[number] != label_names[i]]
    # A model that was never given names has none that could differ, only numbers.
    if different and (numbers is not None or names != [f"LABEL_{number}" for number in range(count)]):
        i = different[0]
        logger.warning(
            "label names differ: label %d is %r in %s and %r in %s, and %d more: they are taken by their place",
            *(found[i], names[found[i]], model, label_names[i], data, len(different) - 1),
        )
    return found


def labels_of(config: Any) -> list[str]:
    """The names of a config's labels, in the order of their numbers."""
    names: dict[Any, str] = dict(config.id2label or {})
    return [str(names[i]) for i in range(len(names))]


def check_one_label(config: Any, model: str = "the model") -> None:
    """Refuse a model that does not choose one label of several for a sample, or a word.

    What counts right answers, or distils by softmax, takes the greatest logit for the answer: of a model of several
    labels a sample, of a regression, or of one label, that says nothing.

    Args:
        config: The model's config.
        model: What the error calls it.

    Raises:
        ValueError: With the problem type, or the number of labels.
    """
    kind = f"problem_type {config.problem_type!r}" if config.num_labels != 1 else "num_labels 1"
    if config.num_labels == 1 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"{model} has {kind}: accuracy and distillation by softmax need one label of several for each sample "
            "(problem_type 'single_label_classification')"
        )


def _by_name(label_names: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """The place in `names` of each label; None unless both hold the same, be it in another case."""
    if Counter(label_names) != Counter(names):
        label_names, names = ([_spelt_alike(name) for name in side] for side in (label_names, names))
        if Counter(label_names) != Counter(names) or len(set(names)) < len(names):
            return None
    places: dict[str, list[int]] = {}
    for place in reversed(range(len(names))):
        places.setdefault(names[place], []).append(place)
    return [places[name].pop() for name in label_names]


def _spelt_alike(name: str) -> str:
    # macOS gives folders' accents as letters of their own.
    return unicodedata.normalize("NFC", name.strip()).casefold()


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
