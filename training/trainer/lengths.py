"""Batches of samples of like lengths, in an order that a resumed run finds again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedByLength(LengthGroupedSampler):
    """transformers' own sampler, whose order depends on seed and epoch alone.

    Args:
        batch_size: How many samples a step takes in a process.
        lengths: The length of each sample.
        seed: The seed.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Take another order from the next iteration on; loaders call it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # One that went on from epoch to epoch would begin again in a resumed run. Torch's generator takes 32 bits.
        self.generator.manual_seed(random.Random(f"{self.seed}/{self.epoch}").getrandbits(32))
        return super().__iter__()


class LengthsTrainer(Trainer):
    """A Trainer that groups by the `lengths` of its datasets, without reading their samples.

    Raises:
        ValueError: If `train_sampling_strategy` groups samples whose lengths are not known.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        strategy = self.args.train_sampling_strategy
        if strategy == "batch_rebalance":
            raise ValueError("train_sampling_strategy=batch_rebalance is not for these runs: give group_by_length")
        if strategy == "group_by_length" and getattr(self.train_dataset, "lengths", None) is None:
            raise ValueError(
                "train_sampling_strategy=group_by_length needs to know how long samples are: leave it out for images, "
                "streams, and sounds that lie on a server"
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedByLength(size, dataset.lengths, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int] | None:
        # Measuring needs no groups, and reads samples in their order.
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(eval_dataset, "__len__"):
            return super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
