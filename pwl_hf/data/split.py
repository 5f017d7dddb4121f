"""A split of labelled images, opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets

from pwl_hf.data.errors import DataError
from pwl_hf.data.pixels import Item, PixelDataset, PixelsInMemory
from pwl_hf.data.rows import LabelledRows
from pwl_hf.data.stream import PixelStream

if TYPE_CHECKING:
    from torch.utils.data import Dataset, IterableDataset
    from transformers import BaseImageProcessor


@dataclass(frozen=True, eq=False)
class ImageSplit(LabelledRows):
    """Images and their labels, as `open_split` opens them; its fields are those of `LabelledRows`."""

    def pixels(
        self,
        processor: BaseImageProcessor,
        *,
        num_channels: int = 3,
        keep_in_memory: bool = False,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ) -> Dataset[Item] | IterableDataset[Item]:
        """The images as a model takes them.

        Args:
            processor: The model's image processor.
            num_channels: The model's input channels (its networks' `num_channels`): images become grey of 1, RGB of 3
                and RGBA of 4.
            keep_in_memory: Decode and process all images now, into one tensor.
            shuffle_buffer: Of a stream, draw each row at random out of this many; 0 keeps the order. A loader
                shuffles everything else.
            seed: The seed of that.

        Returns:
            A torch dataset whose items are `{"pixel_values": (C, H, W) float tensor, "labels": int,
            "sample_ids": int}`, without `labels` if there are none, and of a processor that cuts patches with what
            `process` makes besides. `sample_ids` is the row's number in this split,
            the same in every run and epoch. Of a stream of several files it counts within the file, and the
            file's number times 2^32 is added (see `PixelStream`).

        Raises:
            DataError: If an image cannot be read, when it is.
            ValueError: For another number of channels; if the processor makes others, when an image is read.
        """
        if isinstance(self.data, datasets.IterableDataset):
            if keep_in_memory:
                raise DataError(f"{self.title} is a stream, and is not kept in memory: leave out one of the two")
            return PixelStream(self, processor, shuffle_buffer=shuffle_buffer, seed=seed, num_channels=num_channels)
        if shuffle_buffer:
            raise DataError(f"{self.title} is no stream: let the loader shuffle it, and leave out shuffle_buffer")
        return (PixelsInMemory if keep_in_memory else PixelDataset)(self, processor, num_channels)
