"""The splits that the options name, and their images as training and measuring read them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from pwl_hf.data import DataError, ImageSplit, open_split
from pwl_hf.training.data_arguments import DataArguments


def open_training_split(data: DataArguments, token: str | None = None) -> ImageSplit:
    """The split to train on, of the options."""
    return open_split(data.train_source(token), data.train_split)


def open_eval_split(data: DataArguments, label_names: list[str] | None, token: str | None = None) -> ImageSplit | None:
    """The split to measure on, of the options; None if there is to be none.

    Raises:
        DataError: If its labels are not those of the training split.
    """
    if data.eval_split is None:
        return None
    split = open_split(data.eval_source(token), data.eval_split)
    if label_names is not None and split.label_names is not None and split.label_names != label_names:
        raise DataError(
            f"{split.title} has the labels {split.label_names[:5]}, the training split {label_names[:5]} "
            f"({len(split.label_names)} and {len(label_names)}): give class_names"
        )
    return split


def pixels(split: ImageSplit | None, processor: Any, data: DataArguments, *, seed: int, training: bool) -> Any:
    """The images of a split as the options say: in memory, read when needed, or as a stream; None of no split."""
    if split is None:
        return None
    if split.streaming:
        return split.pixels(processor, shuffle_buffer=data.shuffle_buffer if training else 0, seed=seed)
    return split.pixels(processor, keep_in_memory=data.keep_in_memory)


def pin_where_copied(args: TrainingArguments) -> None:
    """Let loaders pin memory only where there is a device to copy to: elsewhere torch warns of it."""
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
