#!/usr/bin/env python
"""Train or fine-tune a teacher: an image classifier of a family that can be cut into blocks.

    accelerate launch training/train_teacher.py vit-digits-teacher --output_dir digits-teacher
    accelerate launch training/train_teacher.py vgg-cifar10-teacher --output_dir vgg-teacher --seed 1
    accelerate launch training/train_teacher.py --model google/vit-base-patch16-224 --dataset path/to/images \
        --num_train_epochs 10 --learning_rate 1e-4 --output_dir my-teacher

The output folder holds a plain transformers checkpoint with its image processor and the data's label names; give it
to `training/train.py` as `--teacher`. The options are those of transformers' TrainingArguments, and those of the data
and the network; a recipe is a YAML file of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments

from pwl_hf import PWLError
from pwl_hf.training.command_line import CommandLine, Parsed, write_options
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.networks.network_arguments import TeacherArguments
from pwl_hf.training.supervised import fit_teacher

_PROGRAM = "training/train_teacher.py"


def command_line() -> CommandLine:
    """The options of this script."""
    parts = (TeacherArguments, DataArguments, TrainingArguments)
    return CommandLine(parts, _PROGRAM, __doc__.splitlines()[0], required=("output_dir", "dataset"))


def train_teacher(parsed: Parsed) -> dict[str, float]:
    """Train, save and measure a teacher.

    Args:
        parsed: The options.

    Returns:
        What was measured: of the training, and, with a split to measure on, `eval_accuracy`.

    Raises:
        ValueError: If the options do not fit the network or the data.
        RepositoryError: If the network's checkpoint lacks tensors or has some that would be lost.
        TrainingError: If loss or weights are no longer finite; nothing of that is saved, measured or pushed.
    """
    teacher, data, args = parsed.parts
    trainer, metrics = fit_teacher(teacher, data, args, resume=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    if trainer.eval_dataset is not None:
        measured = trainer.evaluate()
        trainer.log_metrics("eval", measured)
        trainer.save_metrics("eval", measured)
        metrics |= measured
    if trainer.is_world_process_zero():
        write_options(parsed.options, Path(args.output_dir), _PROGRAM)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_tags=data.dataset)
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train; wrong options, and errors of ours, end the program with a message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parsed = command_line().parse(sys.argv[1:] if argv is None else argv)
    try:
        train_teacher(parsed)
    except PWLError as error:
        sys.exit(f"{_PROGRAM}: {error}")


if __name__ == "__main__":
    main()
