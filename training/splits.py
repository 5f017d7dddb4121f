"""The splits that the options name, and their samples as training and measuring read them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig, TrainingArguments

from pwl_hf.data import DataError, open_split
from pwl_hf.data.inputs import inputs_of
from pwl_hf.data.opening import Split
from pwl_hf.evaluation.labels import class_numbers
from pwl_hf.training.data_arguments import DataArguments


def open_training_split(data: DataArguments, samples: str, token: str | None = None) -> Split:
    """The split to train on, of the options."""
    return open_split(data.train_source(token), data.train_split, samples)


def open_eval_split(
    data: DataArguments, samples: str, label_names: list[str] | None, token: str | None = None
) -> Split | None:
    """The split to measure on, of the options, numbered as the training split; None if there is to be none.

    Args:
        data: The options.
        samples: What is classified; see `open_split`.
        label_names: The training split's labels, if it has any whose names are known.
        token: The Hub's token for a private data set; the stored one by default.

    Raises:
        DataError: If it has labels that the training split lacks.
    """
    if data.eval_split is None:
        return None
    source = data.eval_source(token)
    split = open_split(source, data.eval_split, samples)
    if label_names is None or split.label_names is None or split.label_names == label_names:
        return split
    # In another order, or some of them: a class folder, or a string, that this split lacks.
    if set(split.label_names) <= set(label_names) and len(set(label_names)) == len(label_names):
        return open_split(replace(source, label_names=label_names), data.eval_split, samples)
    raise DataError(
        f"{split.title} has the labels {split.label_names[:5]}, the training split {label_names[:5]} "
        f"({len(split.label_names)} and {len(label_names)}): give class_names"
    )


def numbered_as(
    config: PreTrainedConfig, model: str, train: Split, evaluation: Split | None
) -> tuple[Split, Split | None, list[int]]:
    """Both splits with the numbers that a model gives their labels (see `class_numbers`).

    Args:
        config: The model's config.
        model: What errors and warnings call the model.
        train: The split to train on.
        evaluation: The split to measure on, of the same labels (see `open_eval_split`).

    Returns:
        The splits, and the model's number of each of their labels.

    Raises:
        ValueError: If the labels cannot be the model's.
    """
    named = train if train.label_names is not None or evaluation is None else evaluation
    id2label: dict[int, str] = config.id2label  # type: ignore[assignment]
    numbers = class_numbers(named.label_names, id2label, data=named.title, model=model)
    return train.renumbered(numbers), None if evaluation is None else evaluation.renumbered(numbers), numbers


def read_split(
    split: Split | None,
    processing: Any,
    data: DataArguments,
    *,
    num_channels: int,
    max_length: int | None,
    seed: int,
    training: bool,
) -> Any:
    """The samples of a split as the options say: in memory, read when needed, or as a stream; None of no split."""
    if split is None:
        return None
    return inputs_of(
        split,
        processing,
        num_channels=num_channels,
        max_length=min((n for n in (data.max_length, max_length) if n is not None), default=None),
        keep_in_memory=data.keep_in_memory,
        shuffle_buffer=data.shuffle_buffer if training and split.streaming else 0,
        seed=seed,
    )


def pin_where_copied(args: TrainingArguments) -> None:
    """Let loaders pin memory only where there is a device to copy to: elsewhere torch warns of it."""
    args.dataloader_pin_memory = args.dataloader_pin_memory and torch.accelerator.is_available()
