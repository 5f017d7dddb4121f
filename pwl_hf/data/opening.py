"""From a source to an opened split: columns recognised, held out, sliced and sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch

# First, for it says what to install where datasets is missing.
from pwl_hf.data.loading import Splits, choose, load_source  # isort: skip
import datasets

from pwl_hf.data.columns import (
    find_audio_column,
    find_image_column,
    find_label_column,
    find_tag_column,
    find_text_column,
    find_word_column,
    in_list,
    label_encoding,
)
from pwl_hf.data.errors import DataError
from pwl_hf.data.sounds import SoundSplit
from pwl_hf.data.source import TRAIN, VALIDATION, DataSource
from pwl_hf.data.split import ImageSplit
from pwl_hf.data.tokens import TextSplit
from pwl_hf.data.words import WordSplit

Split = ImageSplit | TextSplit | WordSplit | SoundSplit
_SPLITS: dict[str, type[Any]] = {"images": ImageSplit, "texts": TextSplit, "words": WordSplit, "sounds": SoundSplit}
_ENCODED = {"images": datasets.Image(decode=False), "sounds": datasets.Audio(decode=False)}

# What is drawn belongs to the data, not to a run: runs of all seeds train and are measured on the same images.
_SEED = 0


@overload
def open_split(source: DataSource, split: str, samples: Literal["images"] = "images") -> ImageSplit: ...


@overload
def open_split(source: DataSource, split: str, samples: Literal["texts"]) -> TextSplit: ...


@overload
def open_split(source: DataSource, split: str, samples: Literal["words"]) -> WordSplit: ...


@overload
def open_split(source: DataSource, split: str, samples: Literal["sounds"]) -> SoundSplit: ...


@overload
def open_split(source: DataSource, split: str, samples: str) -> Split: ...


def open_split(source: DataSource, split: str, samples: str = "images") -> Split:
    """Open a split of labelled images, texts, lists of words or sounds.

    `datasets` downloads a data set whole, with all its splits, and keeps it; one that is streamed, not at all.

    Args:
        source: Where they lie.
        split: A split's name; of a source that is not streamed also a part or a sum in the notation of `datasets`
            (`"train[:90%]"`, `"train+test"`). A part is one of what a holdout leaves.
        samples: What is labelled: `"images"`, `"texts"`, `"words"` (of lists, a label each) or `"sounds"`.

    Raises:
        DataError: If the data or the split is not there, or a column cannot be told from the others.
        huggingface_hub.errors.HfHubHTTPError: If the Hub answers with an error.
    """
    if samples not in _SPLITS:
        raise DataError(f"samples must be one of {', '.join(_SPLITS)}, got {samples!r}")
    where, split = repr(source.name), split.strip()
    splits = load_source(source, _names(split), where)
    if source.streaming:
        if _names(split) != [split]:
            raise DataError(f"{where} is streamed, and a stream has no parts and sums: got split {split!r}")
        data = choose(splits, split, where)
    else:
        if source.holds_out:
            splits = _hold_out(splits, source, where, samples)
        data = _part(splits, split, where)
    title = f"split {split!r} of {where}"
    features = data.features or datasets.Dataset.from_list(list(data.take(1))).features
    try:
        column, label_column = _columns(features, source, title, samples)
    except DataError as error:
        # `datasets` takes no labels from folders where a metadata file stands beside them.
        if source.label_column is None and (metadata := _metadata_file(source.name)) is not None:
            raise DataError(
                f"{error}; with {str(metadata)!r} there the names of class folders are no labels: give it a column "
                "'label', or move it away"
            ) from error
        raise
    if source.streaming:
        data = data.decode(False) if data.features else data.cast(features)
    pair_column = source.text_pair_column if samples == "texts" else None
    if pair_column is not None:
        find_text_column(features, pair_column, (), title)
    if samples == "sounds" and isinstance(features[column], datasets.Value) and "string" in features[column].dtype:
        # Paths; of the longer kind of string `datasets` makes no sounds.
        data = data.cast_column(column, datasets.Value("string"))
    if samples in _ENCODED:
        # Decoded by us, so that an error can name the row.
        data = data.cast_column(column, _ENCODED[samples])
    data = data.select_columns([name for name in (column, pair_column, label_column) if name is not None])
    encoding, labels = None, None
    if label_column is not None:
        values = None if source.streaming else _values(data, label_column)
        if samples == "words":
            every = None if values is None else [value for tags in values for value in tags or ()]
            encoding = label_encoding(in_list(features[label_column]), source.label_names, every, title)
        else:
            encoding = label_encoding(features[label_column], source.label_names, values, title)
        if values is not None and samples != "words":
            labels = torch.tensor([encoding(value, row, title) for row, value in enumerate(values)], dtype=torch.int64)
    elif source.label_names is not None:
        raise DataError(f"{title} has no labels, and label_names were given: leave them out, or give label_column")
    if not source.streaming and source.max_samples is not None and source.max_samples < len(data):
        rows = np.sort(_permutation(len(data))[: source.max_samples])
        data = data.select(rows)
        labels = None if labels is None else labels[rows]
    tokens = {} if source.token is None else {source.name: source.token}
    opened = (title, data, column, label_column, encoding, labels, source.max_samples, tokens)
    return TextSplit(*opened, pair_column) if samples == "texts" else _SPLITS[samples](*opened)


def _columns(features: datasets.Features, source: DataSource, where: str, samples: str) -> tuple[str, str | None]:
    if samples == "texts":
        taken = (source.label_column, source.text_pair_column)
        column = find_text_column(features, source.text_column, taken, where)
    elif samples == "words":
        column = find_word_column(features, source.text_column, (source.label_column,), where)
    elif samples == "sounds":
        column = find_audio_column(features, source.audio_column, where)
    else:
        column = find_image_column(features, source.image_column, where)
    find = find_tag_column if samples == "words" else find_label_column
    return column, None if source.unlabelled else find(features, column, source.label_column, where)


def _metadata_file(name: str) -> Path | None:
    """A folder's first file of metadata; None if it has none."""
    found = (path for path in Path(name).rglob("metadata.*") if path.suffix in (".csv", ".jsonl", ".parquet"))
    return min(found, default=None) if Path(name).is_dir() else None


def _names(split: str) -> list[str]:
    return [term.partition("[")[0].strip() for term in split.split("+")]


def _part(splits: Splits, split: str, where: str) -> datasets.Dataset:
    """A split, a part of it, or a sum."""
    for name in _names(split):
        choose(splits, name, where)
    sizes = {name: len(data) for name, data in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise DataError(f"split {split!r} of {where} cannot be read: {error}") from error
    chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    try:
        data = datasets.concatenate_datasets(chosen)
    except ValueError as error:
        raise DataError(f"split {split!r} of {where} is of parts with other columns or labels: {error}") from error
    if len(data) == 0:
        raise DataError(f"split {split!r} of {where} is empty; rows: {sizes}")
    return data


def _hold_out(splits: Splits, source: DataSource, where: str, samples: str) -> Splits:
    if VALIDATION in splits:
        raise DataError(f"{where} has a split {VALIDATION!r} of its own: leave out holdout and holdout_by")
    train = choose(splits, TRAIN, where)
    if source.holdout_by is not None:
        held = _with_value(train, source.holdout_by, where)
        return {**splits, TRAIN: train.select(np.flatnonzero(~held)), VALIDATION: train.select(np.flatnonzero(held))}
    _, label_column = _columns(train.features, source, where, samples)
    # Without labels, and of words, which have several a row, all rows are of one stratum.
    alike = label_column is None or samples == "words"
    strata = np.zeros(len(train), int) if alike else _strata(_values(train, str(label_column)))
    order = _permutation(len(train))
    held = np.zeros(len(train), bool)
    for stratum in np.unique(strata):
        rows = order[strata[order] == stratum]
        held[rows[: round(len(rows) * (source.holdout or 0))]] = True
    if not held.any() or held.all():
        raise DataError(
            f"a holdout of {source.holdout} leaves one side of the {len(train)} training rows of {where} empty"
        )
    return {**splits, TRAIN: train.select(np.flatnonzero(~held)), VALIDATION: train.select(np.flatnonzero(held))}


def _with_value(train: datasets.Dataset, wanted: str, where: str) -> np.ndarray:
    """Which rows have a value in a column, `COLUMN=VALUE`; of a `ClassLabel` the value is a name."""
    column, _, value = wanted.partition("=")
    if column not in train.features:
        raise DataError(f"{where} has no column {column!r} for holdout_by; it has {', '.join(train.features)}")
    names = getattr(train.features[column], "names", None)
    found = [names[entry] if names and entry is not None else str(entry) for entry in _values(train, column)]
    held = np.array([entry == value for entry in found], dtype=bool)
    if not held.any() or held.all():
        some = ", ".join(map(repr, list(dict.fromkeys(found))[:8]))
        raise DataError(f"holdout_by {wanted!r} leaves one side of {where} empty: the column has {some}")
    return held


def _strata(values: list[Any]) -> np.ndarray:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values])


def _values(data: datasets.Dataset, column: str) -> list[Any]:
    values: list[Any] = data.select_columns([column]).with_format(None)[:][column]
    return values


def _permutation(count: int) -> np.ndarray:
    # RandomState, for its streams are the same in all versions of numpy.
    return np.random.RandomState(_SEED).permutation(count)
