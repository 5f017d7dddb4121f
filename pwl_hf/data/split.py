"""A split of labelled images, opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import torch

from pwl_hf.data.columns import LabelEncoding
from pwl_hf.data.errors import DataError
from pwl_hf.data.pixels import Item, PixelDataset, PixelsInMemory
from pwl_hf.data.stream import PixelStream

if TYPE_CHECKING:
    from torch.utils.data import Dataset, IterableDataset
    from transformers import BaseImageProcessor


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images and their labels, as `open_split` opens them.

    Args:
        title: What errors and logs call it: the split and the source.
        data: The rows, their images still encoded.
        image_column: The column of the images.
        label_column: The column of the labels, or None if there are none.
        encoding: The numbers of the labels, or None if there are none.
        labels: The labels, (rows,) int64. None if there are none, and for a stream.
        max_samples: How many rows of a stream are read.
        tokens: The token of each private repository that images lie in.
    """

    title: str
    data: datasets.Dataset | datasets.IterableDataset
    image_column: str
    label_column: str | None
    encoding: LabelEncoding | None
    labels: torch.Tensor | None
    max_samples: int | None = None
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def label_names(self) -> list[str] | None:
        """The labels' names in the order of their numbers; None without labels, or if they are not known."""
        return None if self.encoding is None or self.encoding.names is None else list(self.encoding.names)

    @property
    def num_rows(self) -> int | None:
        """How many images there are; None for a stream."""
        return None if self.streaming else len(self.data)

    @property
    def streaming(self) -> bool:
        """Whether the rows are read as they are needed, and only in their order."""
        return isinstance(self.data, datasets.IterableDataset)

    def pixels(
        self,
        processor: BaseImageProcessor,
        *,
        keep_in_memory: bool = False,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ) -> Dataset[Item] | IterableDataset[Item]:
        """The images as a model takes them.

        Args:
            processor: The model's image processor.
            keep_in_memory: Decode and process all images now, into one tensor.
            shuffle_buffer: Of a stream, draw each row at random out of this many; 0 keeps the order. A loader
                shuffles everything else.
            seed: The seed of that.

        Returns:
            A torch dataset whose items are `{"pixel_values": (C, H, W) float tensor, "labels": int,
            "sample_ids": int}`, without `labels` if there are none. `sample_ids` is the row's number in this split,
            the same in every run and epoch. Of a stream of several files it counts within the file, and the
            file's number times 2^32 is added (see `PixelStream`).

        Raises:
            DataError: If an image cannot be read, when it is.
        """
        if isinstance(self.data, datasets.IterableDataset):
            if keep_in_memory:
                raise DataError(f"{self.title} is a stream, and is not kept in memory: leave out one of the two")
            return PixelStream(self, processor, shuffle_buffer=shuffle_buffer, seed=seed)
        if shuffle_buffer:
            raise DataError(f"{self.title} is no stream: let the loader shuffle it, and leave out shuffle_buffer")
        return PixelsInMemory(self, processor) if keep_in_memory else PixelDataset(self, processor)

    def encode(self, row: dict[str, Any], number: int) -> int | None:
        """The label of a row, or None if the data has none."""
        if self.encoding is None or self.label_column is None:
            return None
        return self.encoding(row[self.label_column], number, self.title)
