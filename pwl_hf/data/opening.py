"""From a source to an opened split: found, columns recognised, held out, sliced and sampled."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pwl_hf.data.errors import DataError
from pwl_hf.data.source import DIGITS, TRAIN, VALIDATION, DataSource

try:
    import datasets
except ImportError as error:
    raise DataError('reading data needs the package datasets: pip install "pwl-hf[evaluate]"') from error

from pwl_hf.data.columns import find_image_column, find_label_column, label_encoding
from pwl_hf.data.split import ImageSplit

# What is drawn belongs to the data, not to a run: runs of all seeds train and are measured on the same images.
_SEED = 0

# "name" or "user/name".
_HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"

_Splits = Mapping[str, Any]


def open_split(source: DataSource, split: str) -> ImageSplit:
    """Open a split of labelled images.

    `datasets` downloads a data set whole, with all its splits, and keeps it; one that is streamed, not at all.

    Args:
        source: Where the images lie.
        split: A split's name; of a source that is not streamed also a part or a sum in the notation of `datasets`
            (`"train[:90%]"`, `"train+test"`). A part is one of what a holdout leaves.

    Raises:
        DataError: If the data or the split is not there, or a column cannot be told from the others.
        huggingface_hub.errors.HfHubHTTPError: If the Hub answers with an error.
    """
    where, split = repr(source.name), split.strip()
    splits = _load(source, _names(split), where)
    if source.streaming:
        if _names(split) != [split]:
            raise DataError(f"{where} is streamed, and a stream has no parts and sums: got split {split!r}")
        data = _choose(splits, split, where)
    else:
        if source.holdout is not None:
            splits = _hold_out(splits, source, where)
        data = _part(splits, split, where)
    title = f"split {split!r} of {where}"
    features = data.features or datasets.Dataset.from_list(list(data.take(1))).features
    image_column = find_image_column(features, source.image_column, title)
    label_column = None if source.unlabelled else find_label_column(features, image_column, source.label_column, title)
    data = data.select_columns([image_column, *([label_column] if label_column is not None else [])])
    # Decoded by us, so that an error can name the row.
    data = data.cast_column(image_column, datasets.Image(decode=False))
    encoding, labels = None, None
    if label_column is not None:
        values = None if source.streaming else _values(data, label_column)
        encoding = label_encoding(features[label_column], source.label_names, values, title)
        if values is not None:
            labels = torch.tensor([encoding(value, row, title) for row, value in enumerate(values)], dtype=torch.int64)
    elif source.label_names is not None:
        raise DataError(f"{title} has no labels, and label_names were given: leave them out, or give label_column")
    if not source.streaming and source.max_samples is not None and source.max_samples < len(data):
        rows = np.sort(_permutation(len(data))[: source.max_samples])
        data = data.select(rows)
        labels = None if labels is None else labels[rows]
    return ImageSplit(title, data, image_column, label_column, encoding, labels, source.max_samples)


def _load(source: DataSource, names: Sequence[str], where: str) -> _Splits:
    """The splits of a source, at least those asked for."""
    if source.name == DIGITS:
        return _digits()
    path = Path(source.name)
    is_files = path.is_file() or path.suffix == ".parquet" or any(sign in source.name for sign in "*?[")
    if source.revision is not None and (is_files or path.is_dir()):
        raise DataError(
            f"revision {source.revision!r} is for data sets on the Hub, and {where} lies here: leave it out"
        )
    if is_files and not path.is_dir():
        if source.config is not None:
            raise DataError(
                f"config {source.config!r} is for data sets and folders, and {where} is files: leave it out"
            )
        return datasets.load_dataset("parquet", data_files=_parquet_files(source.name), streaming=source.streaming)
    if not path.is_dir() and not re.fullmatch(_HUB_ID, source.name):
        raise DataError(f"there is no file or folder {where}, and it is no name of a data set on the Hub")
    try:
        return _load_named(source, names, where)
    except FileNotFoundError as error:
        if path.is_dir():
            raise DataError(f"the folder {where} holds no data: {error}") from error
        raise DataError(f"{where} is no file or folder here, and not to be had from the Hub: {error}") from error


def _load_named(source: DataSource, names: Sequence[str], where: str) -> _Splits:
    """The splits of a folder or of a data set on the Hub, all of them."""
    call = {"path": source.name, "name": source.config, "revision": source.revision, "token": source.token}
    if source.holdout is None and (files := datasets.load_dataset_builder(**call).config.data_files):
        # Before anything is downloaded.
        for name in names:
            _choose(files, name, where)
    return datasets.load_dataset(**call, streaming=source.streaming)


def _digits() -> _Splits:
    from pwl_hf.data.digits import LABELS, load_splits

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))})
    return {
        name: datasets.Dataset.from_dict({"image": part.images, "label": part.labels}, features=features)
        for name, part in zip((TRAIN, "test"), load_splits(), strict=True)
    }


def _parquet_files(pattern: str) -> dict[str, list[str]]:
    """The files of each split, which their names tell as those in a folder do; other names are training data."""
    files = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise DataError(f"there is no file {pattern!r}")
    if other := [file for file in files if Path(file).suffix != ".parquet"]:
        raise DataError(f"{other[0]!r} is no parquet file; of other formats and of images, give the folder")
    words = {word: str(split) for split, words in datasets.data_files.SPLIT_KEYWORDS.items() for word in words}
    splits: dict[str, list[str]] = {}
    for file in files:
        said = [words[word] for word in re.split(r"[-._ 0-9]+", Path(file).stem.lower()) if word in words]
        splits.setdefault(said[0] if said else TRAIN, []).append(file)
    return splits


def _names(split: str) -> list[str]:
    return [term.partition("[")[0].strip() for term in split.split("+")]


def _choose(splits: _Splits, name: str, where: str) -> Any:
    if name not in splits:
        raise DataError(f"{where} has no split {name!r}; it has {', '.join(repr(str(split)) for split in splits)}")
    return splits[name]


def _part(splits: _Splits, split: str, where: str) -> datasets.Dataset:
    """A split, a part of it, or a sum."""
    for name in _names(split):
        _choose(splits, name, where)
    sizes = {name: len(data) for name, data in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise DataError(f"split {split!r} of {where} cannot be read: {error}") from error
    chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    data = datasets.concatenate_datasets(chosen)
    if len(data) == 0:
        raise DataError(f"split {split!r} of {where} is empty; rows: {sizes}")
    return data


def _hold_out(splits: _Splits, source: DataSource, where: str) -> _Splits:
    if VALIDATION in splits:
        raise DataError(f"{where} has a split {VALIDATION!r} of its own: leave out holdout")
    train = _choose(splits, TRAIN, where)
    image_column = find_image_column(train.features, source.image_column, where)
    label_column = (
        None if source.unlabelled else find_label_column(train.features, image_column, source.label_column, where)
    )
    # Without labels all rows are of one stratum.
    strata = np.zeros(len(train), int) if label_column is None else _strata(_values(train, label_column))
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


def _strata(values: list[Any]) -> np.ndarray:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values])


def _values(data: datasets.Dataset, column: str) -> list[Any]:
    values: list[Any] = data.select_columns([column]).with_format(None)[:][column]
    return values


def _permutation(count: int) -> np.ndarray:
    # RandomState, for its streams are the same in all versions of numpy.
    return np.random.RandomState(_SEED).permutation(count)
