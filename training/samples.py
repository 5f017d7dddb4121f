"""Some of the training samples, for what is fitted to features rather than trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Subset

# What is in a batch besides a model's inputs.
ANSWERS = ("labels", "sample_ids")


def some_batches(dataset: Any, count: int, batch_size: int = 64) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of a choice of samples that is the same in every run and process.

    Data often lies sorted by label, so the first samples would be of few: they are drawn from all of a dataset. Of a
    stream, which is shuffled by itself, they are the first.

    Args:
        dataset: Items as `inputs_of` gives them.
        count: How many samples; all, if there are fewer.
        batch_size: Samples in a batch; the last one may have fewer.
    """
    collate = getattr(dataset, "collate", None)
    if not isinstance(dataset, IterableDataset):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        dataset = Subset(dataset, order[:count].tolist())
    left = count
    loader: DataLoader[Any] = DataLoader(dataset, batch_size, collate_fn=collate)
    for batch in loader:
        yield {name: values[:left] for name, values in batch.items()}
        left -= len(batch["sample_ids"])
        if left <= 0:
            return


def some_inputs(dataset: Any, count: int, batch_size: int = 64) -> Iterator[dict[str, torch.Tensor]]:
    """As `some_batches`, of a model's inputs alone."""
    for batch in some_batches(dataset, count, batch_size):
        yield without_answers(batch)


def without_answers(batch: dict[str, Any]) -> dict[str, Any]:
    """What a batch holds for the model: neither labels nor the samples' numbers."""
    return {name: value for name, value in batch.items() if name not in ANSWERS}
