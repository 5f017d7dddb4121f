"""Sounds as datasets of a network's inputs: decoded, brought to its rate, and padded batch by batch.

Every item is what the feature extractor makes of a sound, with `labels` and `sample_ids`, whole numbers; without
`labels` if the data has none.

Notation: B sounds.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils.file_utils import xopen
from torch.utils.data import Dataset

from pwl_hf.data.errors import DataError
from pwl_hf.data.rows import LabelledRows, Row, rows_of
from pwl_hf.data.stream import RowStream
from pwl_hf.modeling.errors import InputError
from pwl_hf.waveforms import package, read_waveform, waveform_length

logger = logging.getLogger(__name__)

Item = dict[str, Any]

# How many sounds are looked at at once before any is used.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class SoundSplit(LabelledRows):
    """Sounds and their labels, as `open_split` opens them; its fields are those of `LabelledRows`."""

    def features(
        self, extractor: Any, *, keep_in_memory: bool = False, shuffle_buffer: int = 0, seed: int = 0
    ) -> SoundDataset | RowStream:
        """The sounds as a model takes them.

        Args:
            extractor: The model's feature extractor. Sounds become one channel, the mean of theirs, at its rate.
            keep_in_memory: Decode and process all sounds now.
            shuffle_buffer: Of a stream, draw each row at random out of this many; 0 keeps the order.
            seed: The seed of that.

        Returns:
            A torch dataset whose items are what the extractor makes of a sound, with `labels` and `sample_ids` (see
            `ImageSplit.pixels`), and whose `collate` makes a padded batch of some.

        Raises:
            DataError: If a sound is missing or cannot be read: of a stream, and of what lies on a server, when it is
                read; of others, what their headers tell, now. If a package is missing, with its name.
        """
        read = SoundReader(self, extractor)
        if isinstance(self.data, datasets.IterableDataset):
            if keep_in_memory:
                raise DataError(f"{self.title} is a stream, and is not kept in memory: leave out one of the two")
            return RowStream(self, read, read.collate, shuffle_buffer=shuffle_buffer, seed=seed)
        if shuffle_buffer:
            raise DataError(f"{self.title} is no stream: let the loader shuffle it, and leave out shuffle_buffer")
        return SoundDataset(self, read, keep_in_memory=keep_in_memory)


class SoundReader:
    """Makes items of rows of sounds.

    Args:
        split: The split.
        extractor: What makes inputs of waveforms.
    """

    def __init__(self, split: SoundSplit, extractor: Any) -> None:
        with _errors_of_data():
            package("soundfile")
        self.split = split
        self.extractor = extractor

    def __call__(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Item]:
        """The items of rows.

        Args:
            rows: The rows.
            numbers: Their numbers.

        Raises:
            DataError: If a sound is missing or cannot be read, or a label is none of the split's, with the row.
        """
        items: list[Item] = []
        for row, number in zip(rows, numbers, strict=True):
            wave = self.waveform(row[self.split.column], number)
            try:
                made = self.extractor(wave, sampling_rate=self.extractor.sampling_rate, return_tensors="np")
            except ValueError as error:
                # Too short for its windows, say.
                raise DataError(
                    f"the sound in row {number} of {self.split.title}, of {len(wave)} samples, cannot be prepared: "
                    f"{error}; leave the row out"
                ) from error
            item: Item = {name: values[0] for name, values in made.items()}
            if (label := self.split.encode(row, number)) is not None:
                item["labels"] = label
            items.append(item | {"sample_ids": number})
        return items

    def waveform(self, encoded: Any, number: int) -> np.ndarray:
        """The samples of a sound at the extractor's rate, (samples,) float32.

        Args:
            encoded: A dict with `bytes` or `path`.
            number: The row's number.

        Raises:
            DataError: If it is missing or cannot be read.
        """
        file = self._opened(encoded, number)
        with _errors_of_data():
            return read_waveform(file, self._name(encoded, number), self.extractor.sampling_rate)

    def header(self, encoded: Any, number: int) -> int:
        """How many samples a sound will have, by its header; what the header tells to be unreadable is refused.

        Args:
            encoded: As in `waveform`.
            number: The row's number.

        Raises:
            DataError: As `waveform`.
        """
        file = self._opened(encoded, number)
        with _errors_of_data():
            return waveform_length(file, self._name(encoded, number), self.extractor.sampling_rate)

    def collate(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """A batch, (B, ...) each, padded to its longest sound as the extractor pads."""
        whole = {
            name: torch.tensor([item[name] for item in items]) for name in ("labels", "sample_ids") if name in items[0]
        }
        made = [{name: value for name, value in item.items() if name not in whole} for item in items]
        if all(value.shape == made[0][name].shape for item in made for name, value in item.items()):
            inputs = {name: torch.from_numpy(np.stack([item[name] for item in made])) for name in made[0]}
        else:
            names = made[0].keys()
            padded = self.extractor.pad({name: [item[name] for item in made] for name in names}, return_tensors="pt")
            inputs = {name: padded[name] for name in padded}
        return inputs | whole

    def _opened(self, encoded: Any, number: int) -> Any:
        if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
            raise DataError(f"row {number} of {self.split.title} has no sound in {self.split.column!r}: leave it out")
        if encoded["bytes"] is not None:
            return io.BytesIO(encoded["bytes"])
        if not is_remote(encoded):
            return encoded["path"]
        token = next(iter(self.split.tokens.values()), None)
        try:
            with xopen(encoded["path"], "rb", download_config=datasets.DownloadConfig(token=token)) as file:
                return io.BytesIO(file.read())
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self._name(encoded, number)} cannot be read: {type(error).__name__}: {error}; leave the row out"
            ) from error

    def _name(self, encoded: Any, number: int) -> str:
        place = f", {encoded['path']!r}," if encoded.get("path") else ""
        return f"the sound in row {number} of {self.split.title}{place}"


class SoundDataset(Dataset[Item]):
    """The sounds of a split, decoded and processed when they are fetched, or once for all.

    Args:
        split: The split, not streamed.
        read: Makes items of its rows.
        keep_in_memory: Read all of them now.
    """

    def __init__(self, split: SoundSplit, read: SoundReader, *, keep_in_memory: bool = False) -> None:
        self.split = split
        self.collate = read.collate
        self._read = read
        # By header, before any sound is used; those on a server are asked for when they are needed.
        self.lengths: list[int] | None = []
        self._kept: list[Item] | None = [] if keep_in_memory else None
        for start in range(0, len(split.data), _CHUNK):
            rows = list(rows_of(split.data[start : start + _CHUNK]))
            for number, row in enumerate(rows, start):
                if row[split.column] is not None and is_remote(row[split.column]):
                    self.lengths = None
                elif (length := read.header(row[split.column], number)) and self.lengths is not None:
                    self.lengths.append(length)
            if self._kept is not None:
                self._kept += read(rows, range(start, start + len(rows)))

    def __len__(self) -> int:
        return len(self.split.data)

    def __getitem__(self, row: int) -> Item:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Item]:
        """The items of several rows."""
        numbers = [int(row) for row in rows]
        if self._kept is not None:
            return [self._kept[number] for number in numbers]
        return self._read(list(rows_of(self.split.data[numbers])), numbers)


def is_remote(encoded: Any) -> bool:
    """Whether an encoded image or sound lies on a server."""
    return encoded["bytes"] is None and "://" in (encoded["path"] or "")


@contextmanager
def _errors_of_data() -> Iterator[None]:
    """What is wrong with a sound, and packages that are missing, as errors of data."""
    try:
        yield
    except InputError as error:
        raise DataError(f"{error}, or leave the row out") from error
    except ImportError as error:
        raise DataError(str(error)) from error
