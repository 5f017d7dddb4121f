"""Whether a data set's labels are a model's, and how its numbers become the model's (pure Python)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def class_numbers(label_names: Sequence[str] | None, id2label: Mapping[int, str]) -> list[int]:
    """The model's number of each of the data's labels.

    Names count where both sides have them: the same names in another order are brought into the model's. Names
    that only repeat the numbers (`"0"`, `"1"`, or the `"LABEL_0"` of a model whose labels were never named) are
    none.

    Args:
        label_names: The names of the data's labels in the order of their numbers; None if they have none.
        id2label: The model's.

    Returns:
        A number for each label of the data; all numbers of the model if their count is not known.

    Raises:
        ValueError: If the labels are not the model's.
    """
    count = len(id2label)
    if label_names is None:
        return list(range(count))
    names = [id2label[number] for number in range(count)]
    if sorted(label_names) == sorted(names) and len(set(names)) == count:
        return [names.index(name) for name in label_names]
    if _are_numbers(label_names):
        if len(label_names) > count:
            raise ValueError(f"the data has the labels 0 to {len(label_names) - 1}, the model has {count} labels")
        return list(range(len(label_names)))
    if len(label_names) != count:
        raise ValueError(
            f"the data has {len(label_names)} labels ({_some(label_names)}), the model has {count} ({_some(names)}): "
            "evaluate it on data with its own labels"
        )
    if _are_numbers(names) or names == [f"LABEL_{number}" for number in range(count)]:
        return list(range(count))
    other = next(name for name in [*label_names, *names] if name not in names or name not in label_names)
    raise ValueError(
        f"the data's labels ({_some(label_names)}) are not the model's ({_some(names)}): only the "
        f"{'data' if other in label_names else 'model'} has {other!r}; if they mean the same, give the data's labels "
        "the model's names with label_names"
    )


def _are_numbers(names: Sequence[str]) -> bool:
    return list(names) == [str(number) for number in range(len(names))]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
