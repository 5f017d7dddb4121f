"""Some of the training images, for what is fitted to features rather than trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset


def some_batches(dataset: Any, count: int, batch_size: int = 64) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a choice of images that is the same in every run and process.

    Data often lies sorted by label, so the first images would be of few: they are drawn from all of a dataset. Of a
    stream, which is shuffled by itself, they are the first.

    Args:
        dataset: Items as `ImageSplit.pixels` gives them.
        count: How many images; all, if there are fewer.
        batch_size: Images in a batch; the last one may have fewer.
    """
    if not isinstance(dataset, IterableDataset):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        dataset = Subset(dataset, order[:count].tolist())
    left = count
    loader: DataLoader[Any] = DataLoader(dataset, batch_size)
    for batch in loader:
        yield {name: values[:left] for name, values in batch.items()}
        left -= len(batch["pixel_values"])
        if left <= 0:
            return
