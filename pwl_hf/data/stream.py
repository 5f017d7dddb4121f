"""Samples read as they come, in their order or nearly so."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from transformers import BaseImageProcessor

from pwl_hf.data.pixels import Item, read_items
from pwl_hf.data.processing import check_channels
from pwl_hf.data.rows import LabelledRows, Row, rows_of

# A row's number is its number in its file, plus this times the file's number: known without reading other files.
FILE_STRIDE = 1 << 32

# How many rows are read and processed at once.
_CHUNK = 32

_Numbered = tuple[int, Row]


class RowStream(IterableDataset[Item]):
    """The samples of a streamed split, made into items as they are read.

    Workers of a loader share the files out among themselves, and where there are more workers than files, the rows
    of a file: each row comes once, with the same number, whatever their count. Between processes, accelerate
    shares out the rows of the one stream; with several workers as well it drops some of the last rows of each.

    Args:
        split: The split, streamed.
        read: Makes items of rows and their numbers.
        collate: Makes a batch of items; as loaders do by default.
        shuffle_buffer: Draw each row at random out of this many, and read the files in random order; 0 keeps the
            order.
        seed: The seed of that, together with the epoch.
    """

    def __init__(
        self,
        split: LabelledRows,
        read: Callable[[list[Row], list[int]], list[Item]],
        collate: Callable[[list[Item]], Any] | None = None,
        *,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ) -> None:
        self.split = split
        self.read = read
        self.collate = collate
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle in another order from the next iteration on; loaders call it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Item]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rows = self._rows(worker, workers)
        if self.shuffle_buffer:
            rows = _shuffled(rows, self.shuffle_buffer, random.Random(f"{self.seed}/{self.epoch}/{worker}"))
        while chunk := list(islice(rows, _CHUNK)):
            yield from self.read([row for _, row in chunk], [number for number, _ in chunk])

    def _rows(self, worker: int, workers: int) -> Iterator[_Numbered]:
        """A worker's rows and their numbers, still encoded."""
        data = self.split.data
        files = data.num_shards
        groups = min(files, workers)
        # The workers whose number leaves the same remainder read the same files, each its own rows of them.
        group, member = worker % groups, worker // groups
        members = len(range(group, workers, groups))
        mine = list(range(group, files, groups))
        if self.shuffle_buffer:
            random.Random(f"{self.seed}/{self.epoch}/files").shuffle(mine)
        for file in mine:
            for number, row in islice(enumerate(self._file(file, files)), member, None, members):
                yield file * FILE_STRIDE + number, row

    def _file(self, file: int, files: int) -> Iterator[Row]:
        limit = self.split.max_samples
        # The first rows of every file, as many of each: how long a file is, is not known.
        limit = None if limit is None else limit // files + (file < limit % files)
        # `iter` rather than `__iter__`, which would share out the rows among a loader's workers once more.
        batches = self.split.data.shard(files, file).iter(_CHUNK)
        return islice((row for batch in batches for row in rows_of(batch)), limit)


class PixelStream(RowStream):
    """The images of a streamed split, decoded and processed as they are read.

    Args:
        split: The split, streamed.
        processor: What makes tensors of images.
        shuffle_buffer: As in `RowStream`.
        seed: As there.
        num_channels: The network's input channels.
    """

    def __init__(
        self,
        split: LabelledRows,
        processor: BaseImageProcessor,
        *,
        shuffle_buffer: int = 0,
        seed: int = 0,
        num_channels: int = 3,
    ) -> None:
        check_channels(num_channels)
        super().__init__(split, self._read_images, shuffle_buffer=shuffle_buffer, seed=seed)
        self.processor = processor
        self.num_channels = num_channels

    def _read_images(self, rows: list[Row], numbers: list[int]) -> list[Item]:
        labels = [
            label
            for number, row in zip(numbers, rows, strict=True)
            if (label := self.split.encode(row, number)) is not None
        ]
        encoded = [row[self.split.column] for row in rows]
        return read_items(self.split, encoded, numbers, labels or None, self.processor, self.num_channels)


def _shuffled(rows: Iterator[_Numbered], size: int, chance: random.Random) -> Iterator[_Numbered]:
    buffer = list(islice(rows, size))
    for row in rows:
        place = chance.randrange(size)
        yield buffer[place]
        buffer[place] = row
    chance.shuffle(buffer)
    yield from buffer
