"""Images as datasets of tensors: decoded and processed as they are asked for, or once for all.

Every item is `{"pixel_values": (C, H, W) float, "labels": int, "sample_ids": int}`, without `labels` if the data has
none; for a network of patches it has what `process` makes besides. An image is first turned upright and given the
network's channels (see `processing`): not every processor does.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import datasets
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from pwl_hf.data.errors import DataError
from pwl_hf.data.processing import check_channels, process, upright
from pwl_hf.data.rows import LabelledRows

Item = dict[str, Any]

# How many images are processed at once where all of them are.
_CHUNK = 256

# How many images are fetched at once where each lies in a file of its own on the Hub.
_REQUESTS = 16


def read_items(
    split: LabelledRows,
    encoded: Sequence[Any],
    rows: Sequence[int],
    labels: Sequence[int] | None,
    processor: BaseImageProcessor,
    num_channels: int = 3,
) -> list[Item]:
    """Encoded images of a split as items, with one call of the processor.

    Args:
        split: The split.
        encoded: Dicts with `bytes` or `path`, one for each row.
        rows: The rows' numbers.
        labels: The rows' labels, or None.
        processor: What makes tensors of images.
        num_channels: The network's input channels.

    Raises:
        DataError: If an image is missing or cannot be read, whatever the reason.
        ValueError: If the processor does not make images of so many channels.
    """
    if any(_is_remote(image) for image in encoded):
        # A request each: most of the time is waiting.
        with ThreadPoolExecutor(_REQUESTS) as pool:
            images = list(pool.map(partial(_decode, split, num_channels), encoded, rows))
    else:
        images = list(map(partial(_decode, split, num_channels), encoded, rows))
    made = process(images, processor, num_channels)
    items: list[Item] = [
        {name: values[place] for name, values in made.items()} | {"sample_ids": row} for place, row in enumerate(rows)
    ]
    for item, label in zip(items, labels or (), strict=labels is not None):
        item["labels"] = label
    return items


def _is_remote(encoded: Any) -> bool:
    return encoded is not None and encoded["bytes"] is None and "://" in (encoded["path"] or "")


def _decode(split: LabelledRows, num_channels: int, encoded: Any, row: int) -> Image.Image:
    if encoded is None:
        raise DataError(f"row {row} of {split.title} has no image")
    try:
        return upright(datasets.Image().decode_example(encoded, token_per_repo_id=dict(split.tokens)), num_channels)
    # Decoders raise what they like: OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        place = f", {encoded['path']!r}," if encoded.get("path") else ""
        raise DataError(f"the image in row {row} of {split.title}{place} cannot be read: {reason}") from error


class PixelDataset(Dataset[Item]):
    """The images of a split, decoded and processed when they are fetched; a loader fetches a batch at once.

    It can be sent to a loader's workers.

    Args:
        split: The split, not streamed.
        processor: What makes tensors of images.
        num_channels: The network's input channels.
    """

    def __init__(self, split: LabelledRows, processor: BaseImageProcessor, num_channels: int = 3) -> None:
        check_channels(num_channels)
        self.split = split
        self.processor = processor
        self.num_channels = num_channels

    def __len__(self) -> int:
        return len(self.split.data)

    def __getitem__(self, row: int) -> Item:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Item]:
        """The items of several rows, with one call of the processor."""
        rows = [int(row) for row in rows]
        split = self.split
        encoded = split.data[rows][split.column]
        labels = None if split.labels is None else split.labels[rows].tolist()
        return read_items(split, encoded, rows, labels, self.processor, self.num_channels)


class PixelsInMemory(Dataset[Item]):
    """The images of a split in one tensor for each input, decoded and processed once.

    Args:
        split: The split, not streamed.
        processor: What makes tensors of images.
        num_channels: The network's input channels.
    """

    def __init__(self, split: LabelledRows, processor: BaseImageProcessor, num_channels: int = 3) -> None:
        lazy = PixelDataset(split, processor, num_channels)
        self.labels = split.labels
        self._count = len(lazy)
        self.inputs: dict[str, torch.Tensor] = {}
        for start in range(0, len(lazy), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(lazy)))
            items = lazy.__getitems__(rows)
            for name in items[0].keys() - {"labels", "sample_ids"}:
                chunk = torch.stack([item[name] for item in items])
                if start == 0:
                    # Written into place, so that the whole never lies in memory twice.
                    self.inputs[name] = chunk.new_empty((len(lazy), *chunk.shape[1:]))
                self.inputs[name][start : start + len(chunk)] = chunk

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Item:
        item: Item = {name: values[row] for name, values in self.inputs.items()}
        item["sample_ids"] = range(len(self))[row]
        if self.labels is not None:
            item["labels"] = int(self.labels[row])
        return item
