"""Which column holds the samples, which the labels, and what the labels are called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Audio, ClassLabel, Features, Image, LargeList, List, Value

from pwl_hf.data.errors import DataError
from pwl_hf.data.names import in_order

_IMAGE_NAMES = ("image", "img")
_TEXT_NAMES = ("text", "sentence", "content", "review", "utterance", "question")
_WORD_NAMES = ("tokens", "words")
_AUDIO_NAMES = ("audio", "sound", "speech")
_LABEL_NAMES = ("label", "labels", "fine_label", "class")
# Of lists of labels; the second is what transformers' own example looks for.
_TAG_NAMES = ("labels", "ner_tags", "tags")


def find_image_column(features: Features, given: str | None, where: str) -> str:
    """The column of the images.

    The one given; else the only column of images; else, of several, the only one called image or img. A column of
    encoded images that is not marked as such (bytes, or a struct with bytes, as in a parquet file that
    `datasets` did not write) counts if no column is.

    Args:
        features: The columns and their types.
        given: A name, or None to find it.
        where: What an error calls the data.

    Raises:
        DataError: If there is none, or several.
    """
    if given is not None:
        return _named(
            given, lambda it: isinstance(it, Image) or _is_encoded(it), "images", "image_column", features, where
        )
    return _only(_marked(Image, features), _IMAGE_NAMES, "images", "image_column", features, where)


def find_text_column(features: Features, given: str | None, taken: Sequence[str | None], where: str) -> str:
    """The column of the texts.

    The one given; else the only column of strings that is not taken and has no usual name of labels; else, of several,
    the only one with a usual name (text, sentence, content, review, utterance, question).

    Args:
        features: The columns and their types.
        given: A name, or None to find it.
        taken: Columns that were named for something else.
        where: What an error calls the data.

    Raises:
        DataError: If there is none, or several.
    """
    if given is not None:
        return _named(given, _is_text, "texts", None, features, where)
    others = (*taken, *_LABEL_NAMES)
    found = [name for name, feature in features.items() if name not in others and _is_text(feature)]
    return _only(found, _TEXT_NAMES, "texts", "text_column", features, where)


def find_word_column(features: Features, given: str | None, taken: Sequence[str | None], where: str) -> str:
    """The column of the lists of words.

    The one given; else the only column of lists of strings that is not taken and has no usual name of tags; else, of
    several, the only one with a usual name (tokens, words).

    Args:
        features: As in `find_text_column`, with what follows.
        given: A name, or None to find it.
        taken: Columns that were named for something else.
        where: What an error calls the data.

    Raises:
        DataError: If there is none, or several.
    """
    if given is not None:
        return _named(given, lambda it: _is_text(in_list(it)), "lists of words", "text_column", features, where)
    others = (*taken, *_TAG_NAMES)
    found = [name for name, feature in features.items() if name not in others and _is_text(in_list(feature))]
    return _only(found, _WORD_NAMES, "lists of words", "text_column", features, where)


def find_audio_column(features: Features, given: str | None, where: str) -> str:
    """The column of the sounds.

    The one given, which may hold paths of files; else the only column of sounds; else, of several, the only one called
    audio, sound or speech. A column of encoded sounds that is not marked as such (bytes, or a struct with bytes) counts
    if no column is.

    Args:
        features: The columns and their types.
        given: A name, or None to find it.
        where: What an error calls the data.

    Raises:
        DataError: If there is none, or several.
    """
    if given is not None:
        return _named(
            given,
            lambda it: isinstance(it, Audio) or _is_encoded(it) or _is_text(it),
            "sounds",
            "audio_column",
            features,
            where,
        )
    return _only(_marked(Audio, features), _AUDIO_NAMES, "sounds", "audio_column", features, where)


def find_tag_column(features: Features, word_column: str, given: str | None, where: str) -> str | None:
    """The column of the lists of labels, one for each word; as `find_label_column`, with other usual names.

    Usual are labels, ner_tags and tags.

    Args:
        features: The columns and their types.
        word_column: The column of the words.
        given: A name, or None to find it.
        where: What an error calls the data.

    Raises:
        DataError: As `find_label_column`.
    """
    inner = Features({name: found for name in features if (found := in_list(features[name])) is not None})
    if given is not None and given in features and (given not in inner or not _is_label(inner[given])):
        raise DataError(
            f"label_column {given!r} of {where} must hold lists of ClassLabels, whole numbers or strings, one for each "
            f"word; its type is {features[given]}"
        )
    return find_label_column(inner, word_column, given, where, usual=_TAG_NAMES)


def in_list(feature: Any) -> Any:
    """What a column of lists has lists of; None of another column."""
    return feature.feature if isinstance(feature, List | LargeList) else None


def find_label_column(
    features: Features, sample_column: str, given: str | None, where: str, usual: Sequence[str] = _LABEL_NAMES
) -> str | None:
    """The column of the labels.

    The one given; else the only `ClassLabel`; else, of several, the only one with a usual name (label, labels,
    fine_label, class); else the only column of numbers or strings with such a name.

    Args:
        features: The columns and their types.
        sample_column: The column of the samples.
        given: A name, or None to find it.
        where: What an error calls the data.
        usual: The usual names.

    Returns:
        The name, or None if there is nothing else that could be a label.

    Raises:
        DataError: If several could be meant, or if there are columns of numbers or strings and none is known as
            the labels': whether they are labels has to be said.
    """
    if given is not None:
        if given not in features:
            raise DataError(f"{where} has no column {given!r} for label_column; it has {_columns(features)}")
        if not _is_label(features[given]):
            raise DataError(
                f"label_column {given!r} of {where} must hold ClassLabels, whole numbers or strings; "
                f"its type is {features[given]}"
            )
        return given
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if classes:
        return _only(classes, usual, "labels", "label_column", features, where)
    others = [name for name, feature in features.items() if name != sample_column and _is_label(feature)]
    if not others:
        return None
    named = [name for name in others if name in usual]
    return _only(named, usual, "labels", "label_column", features, where, "; without labels, unlabelled")


def _named(
    given: str,
    holds: Callable[[Any], bool],
    what: str,
    option: str | None,
    features: Features,
    where: str,
) -> str:
    """A column that was named by an option, or by one of several, if it holds what it should."""
    if given not in features:
        asked = f" for {option}" if option else ""
        raise DataError(f"{where} has no column {given!r}{asked}; it has {_columns(features)}")
    if not holds(features[given]):
        called = option or "the column"
        raise DataError(f"{called} {given!r} of {where} holds no {what}; its type is {features[given]}")
    return given


def _marked(kind: type, features: Features) -> list[str]:
    """The columns of a kind; if there are none, those of encoded files."""
    marked = [name for name, feature in features.items() if isinstance(feature, kind)]
    return marked or [name for name, feature in features.items() if _is_encoded(feature)]


def _only(
    found: Sequence[str],
    usual: Sequence[str],
    what: str,
    option: str,
    features: Features,
    where: str,
    otherwise: str = "",
) -> str:
    candidates = list(found)
    if len(candidates) > 1:
        candidates = [name for name in candidates if name in usual]
    if len(candidates) == 1:
        return candidates[0]
    seen = f"several columns of {what}, {', '.join(map(repr, found))}" if found else f"no column known to hold {what}"
    raise DataError(f"{where} has {seen}; its columns are {_columns(features)}: give {option}{otherwise}")


def _is_encoded(feature: Any) -> bool:
    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_label(feature: Any) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and feature.dtype.lstrip("u").startswith(("int", "string", "large_string"))


def _columns(features: Features) -> str:
    return ", ".join(f"{name!r} ({_kind(feature)})" for name, feature in features.items())


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


@dataclass(frozen=True)
class LabelEncoding:
    """From what stands in the data to a label's number.

    Args:
        names: The labels' names in the order of their numbers; None if they are not known.
        numbers: The number of each value. None takes every whole number from 0 on as itself.
    """

    names: tuple[str, ...] | None
    numbers: Mapping[Any, int] | None

    def __call__(self, value: Any, row: int, where: str) -> int:
        """The number of the label `value` that stands in a row.

        Raises:
            DataError: If it is none of the labels.
        """
        number = self.numbers.get(value) if self.numbers is not None else value
        if number is None or number < 0:
            raise DataError(
                f"row {row} of {where} has the label {value!r}, which is {_none_of(self)}; "
                "give other label_names, or take the data without labels, unlabelled"
            )
        return int(number)


def _none_of(encoding: LabelEncoding) -> str:
    if encoding.numbers is None:
        return "no label"
    values = [repr(value) for value in encoding.numbers]
    return "none of " + ", ".join(values if len(values) <= 12 else [*values[:10], f"... ({len(values)} in all)"])


def label_encoding(
    feature: Any, given: Sequence[str] | None, values: Iterable[Any] | None, where: str
) -> LabelEncoding:
    """How the labels of a column are numbered.

    Args:
        feature: The column's type.
        given: The names in the wanted order, or None: those of the features, or the sorted strings; but names that are
            all numbers are in the order of their values.
        values: All values of the column; None for a stream.
        where: What an error calls the data.

    Raises:
        DataError: If the names cannot be known, or those given do not fit those in the features.
    """
    if isinstance(feature, ClassLabel) and feature.names:
        return _encode_classes(feature.names, given, where)
    if getattr(feature, "dtype", "") in ("string", "large_string"):
        if given is None and values is None:
            raise DataError(f"the labels of {where} are strings, and a stream does not tell all: give label_names")
        names = tuple(given if given is not None else in_order(sorted({v for v in values or () if v is not None})))
        if len(set(names)) < len(names):
            raise DataError(f"the labels of {where} are strings, so label_names must be different: got {_some(names)}")
        return LabelEncoding(names, {name: number for number, name in enumerate(names)})
    if given is None and values is None:
        return LabelEncoding(None, None)
    if given is None:
        count = 1 + max((value for value in values or () if value is not None), default=-1)
        given = [str(number) for number in range(count)]
    return LabelEncoding(tuple(given), {number: number for number in range(len(given))})


def _encode_classes(names: Sequence[str], given: Sequence[str] | None, where: str) -> LabelEncoding:
    ordered = in_order(names)
    wanted = tuple(ordered if given is None else given)
    if set(names) <= set(wanted) and len(set(wanted)) == len(wanted):
        place = {name: number for number, name in enumerate(wanted)}
    elif len(wanted) == len(names) and not set(names) & set(wanted):
        # New names; those of numbers go by their values.
        place = {name: number for number, name in enumerate(ordered)}
    else:
        raise DataError(
            f"{where} has {len(names)} labels, {_some(names)}; the {len(wanted)} label_names given, {_some(wanted)}, "
            "are neither these in another order nor as many new ones"
        )
    return LabelEncoding(wanted, {number: place[name] for number, name in enumerate(names)})


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
