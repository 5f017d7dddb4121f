"""Where data lies: in scikit-learn, in files, in folders, or on the Hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pwl_hf.data.errors import DataError
from pwl_hf.data.source import DIGITS, TRAIN, DataSource

try:
    import datasets
except ImportError as error:
    raise DataError('reading data needs the package datasets: pip install "pwl-hf[evaluate]"') from error

# "name" or "user/name".
_HUB_ID = r"\w[\w.-]*(/\w[\w.-]*)?"

Splits = Mapping[str, Any]


def choose(splits: Splits, name: str, where: str) -> Any:
    """One split.

    Raises:
        DataError: If there is none of that name; it tells those there are.
    """
    if name not in splits:
        raise DataError(f"{where} has no split {name!r}; it has {', '.join(repr(str(split)) for split in splits)}")
    return splits[name]


def load_source(source: DataSource, names: Sequence[str], where: str) -> Splits:
    """The splits of a source.

    Args:
        source: Where the images lie.
        names: The splits that are asked for. What does not have them is not downloaded, unless there is a holdout.
        where: What an error calls the data.

    Returns:
        Their rows by name, or streams of them.

    Raises:
        DataError: If there is no such data, or no such split in what would be downloaded.
    """
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


def _load_named(source: DataSource, names: Sequence[str], where: str) -> Splits:
    """The splits of a folder or of a data set on the Hub, all of them."""
    call = {"path": source.name, "name": source.config, "revision": source.revision, "token": source.token}
    if source.holdout is None and (files := datasets.load_dataset_builder(**call).config.data_files):
        # Before anything is downloaded.
        for name in names:
            choose(files, name, where)
    return datasets.load_dataset(**call, streaming=source.streaming)


def _digits() -> Splits:
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
