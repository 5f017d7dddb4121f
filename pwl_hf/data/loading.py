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
    import pyarrow.parquet as pq
    from datasets.packaged_modules.audiofolder.audiofolder import AudioFolder
except ImportError as error:
    raise DataError('reading data needs the package datasets: pip install "pwl-hf[evaluate]"') from error

# What `datasets` calls the format of a file.
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
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
        source: Where the samples lie.
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
    is_files = path.is_file() or path.suffix in _FORMATS or any(sign in source.name for sign in "*?[")
    if source.revision is not None and (is_files or path.is_dir()):
        raise DataError(
            f"revision {source.revision!r} is for data sets on the Hub, and {where} lies here: leave it out"
        )
    if is_files and not path.is_dir():
        if source.config is not None:
            raise DataError(
                f"config {source.config!r} is for data sets and folders, and {where} is files: leave it out"
            )
        return _load_files(_files(source.name), where, source.streaming)
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
    call: dict[str, Any] = {
        "path": source.name,
        "name": source.config,
        "revision": source.revision,
        "token": source.token,
    }
    builder = datasets.load_dataset_builder(**call)
    files: Mapping[Any, Any] = builder.config.data_files or {}
    if not source.holds_out and files:
        # Before anything is downloaded.
        for name in names:
            choose(files, name, where)
    paths = {str(split): [str(path) for path in found] for split, found in files.items()}
    every = [path for found in paths.values() for path in found]
    if builder.info.features is None and every and all(p.endswith(".parquet") and Path(p).is_file() for p in every):
        return _load_files(paths, where, source.streaming)
    if isinstance(builder, AudioFolder) and not datasets.config.TORCHCODEC_AVAILABLE:
        return _sounds_of_folder(paths, where, source.streaming)
    return datasets.load_dataset(**call, streaming=source.streaming)


def _sounds_of_folder(files: Mapping[str, Sequence[str]], where: str, streaming: bool) -> Splits:
    """Splits of a folder of sounds, a subfolder a label: `datasets` lists their paths by torchcodec alone."""
    sounds = {
        split: [path for path in paths if Path(path).suffix.lower() in AudioFolder.EXTENSIONS]
        for split, paths in files.items()
    }
    if other := [path for split in files for path in files[split] if path not in sounds[split]]:
        raise DataError(
            f"{where} has {Path(other[0]).name!r} with its sounds, which needs the package torchcodec: install it, or "
            "write the sounds and their labels to parquet"
        )
    names = sorted({Path(path).parent.name for paths in sounds.values() for path in paths})
    features = datasets.Features({"audio": datasets.Value("string")})
    if len(names) > 1:
        features["label"] = datasets.ClassLabel(names=names)
    splits = {}
    for split, paths in sounds.items():
        columns = {"audio": paths, "label": [Path(path).parent.name for path in paths]}
        data = datasets.Dataset.from_dict({name: columns[name] for name in features}, features=features)
        data = data.cast_column("audio", datasets.Audio(decode=False))
        splits[split] = data.to_iterable_dataset() if streaming else data
    return splits


def _load_files(files: Mapping[str, Sequence[str]], where: str, streaming: bool) -> Splits:
    """Splits of files, each with the labels that its own files name, if they are parquet.

    `datasets` takes the names from the first file of all: numbers in a file whose names are in another order would
    be other labels.
    """
    (form,) = {_FORMATS[Path(path).suffix] for paths in files.values() for path in paths}
    for paths in files.values() if form == "parquet" else ():
        names = [_label_names(path) for path in paths]
        for path, own in zip(paths, names, strict=True):
            for column in own.keys() & names[0].keys():
                if own[column] != names[0][column]:
                    raise DataError(
                        f"the files of {where} name the labels of column {column!r} differently: {paths[0]} has "
                        f"{names[0][column][:5]}, {path} has {own[column][:5]}; write them with the same names in the "
                        "same order"
                    )
    try:
        return {
            split: datasets.load_dataset(form, data_files={split: paths}, split=split, streaming=streaming)
            for split, paths in files.items()
        }
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(f"{where} cannot be read as {form}: {error.__cause__ or error}") from error


def _label_names(path: str) -> dict[str, list[str]]:
    """The names of the labels that a parquet file declares, by column; `datasets` writes them into the schema."""
    features = datasets.Features.from_arrow_schema(pq.read_schema(path))
    return {column: found.names for column, found in features.items() if isinstance(found, datasets.ClassLabel)}


def _digits() -> Splits:
    from pwl_hf.data.digits import LABELS, load_splits

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(LABELS))})
    return {
        name: datasets.Dataset.from_dict({"image": part.images, "label": part.labels}, features=features)
        for name, part in zip((TRAIN, "test"), load_splits(), strict=True)
    }


def _files(pattern: str) -> dict[str, list[str]]:
    """The files of each split, which their names tell as those in a folder do; other names are training data."""
    files = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise DataError(f"there is no file {pattern!r}")
    suffixes = {Path(file).suffix for file in files}
    if other := [file for file in files if Path(file).suffix not in _FORMATS]:
        raise DataError(
            f"{other[0]!r} is no file of {', '.join(_FORMATS)}; of other formats, of images and sounds, give the folder"
        )
    if len({_FORMATS[suffix] for suffix in suffixes}) > 1:
        raise DataError(f"{pattern!r} are files of several formats, {', '.join(sorted(suffixes))}: give those of one")
    words = {word: str(split) for split, words in datasets.data_files.SPLIT_KEYWORDS.items() for word in words}
    splits: dict[str, list[str]] = {}
    for file in files:
        said = [words[word] for word in re.split(r"[-._ 0-9]+", Path(file).stem.lower()) if word in words]
        splits.setdefault(said[0] if said else TRAIN, []).append(file)
    return splits
