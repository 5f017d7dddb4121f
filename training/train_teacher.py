#!/usr/bin/env python
"""Train or fine-tune a teacher: a classifier of a family that can be cut into blocks.

    accelerate launch training/train_teacher.py vit-digits-teacher --output_dir digits-teacher
    accelerate launch training/train_teacher.py vgg-cifar10-teacher --output_dir vgg-teacher --seed 1
    accelerate launch training/train_teacher.py --model google/vit-base-patch16-224 --dataset path/to/images \
        --num_train_epochs 10 --learning_rate 1e-4 --output_dir my-teacher
    accelerate launch training/train_teacher.py bert-banking77-teacher --output_dir banking-teacher

The output folder holds a plain transformers checkpoint with its image processor, tokenizer or feature extractor and the
data's label names; give it to `training/train.py` as `--teacher`. The options are those of transformers'
TrainingArguments, and those of the data and the network; a recipe is a YAML file of them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pwl_hf.modeling import OverwriteError
from pwl_hf.modeling.repository.layout import CONFIG_FILE, MANIFEST_FILE, PROCESSOR_FILE, STUDENT_FILE
from pwl_hf.modeling.repository.output_folder import check_output
from pwl_hf.modeling.task_names import TOKENIZER_FILES
from pwl_hf.own_families import import_families
from pwl_hf.training.command_line import RUN_FILE, CommandLine, Parsed, told_in_a_line, write_options
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.networks.network_arguments import TeacherArguments
from pwl_hf.training.supervised import fit_teacher

_PROGRAM = "training/train_teacher.py"
# What transformers' Trainer writes into the output folder.
_WRITTEN = (
    *(CONFIG_FILE, STUDENT_FILE, "model.safetensors.index.json", TRAINING_ARGS_NAME),
    *(PROCESSOR_FILE, *TOKENIZER_FILES),
)


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
        OverwriteError: If `output_dir` is the network's own folder, a PWL repository, or holds a checkpoint that is not
            of an earlier run of this script.
        RepositoryError: If the network's checkpoint lacks tensors or has some that would be lost.
        TrainingError: If loss or weights are no longer finite; nothing of that is saved, measured or pushed.
    """
    teacher, data, args = parsed.parts
    if teacher.family_module is not None:
        import_families(teacher.family_module)
    _check_output(Path(args.output_dir), teacher.model)
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


def _check_output(folder: Path, model: str | None) -> None:
    """Before anything is trained: refuse to write over networks that are not this script's."""
    if (folder / MANIFEST_FILE).exists():
        raise OverwriteError(
            f"{folder} is a PWL repository, and the teacher would be written over its student: give another output_dir"
        )
    is_own = any((folder / name).exists() for name in (RUN_FILE, TRAINER_STATE_NAME))
    is_own = is_own or any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))
    inputs = [] if model is None else [model]
    check_output(folder, _WRITTEN, inputs=inputs, overwrite=is_own, advice="give another output_dir")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train; wrong options, and errors of ours, end the program with a message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parsed = command_line().parse(sys.argv[1:] if argv is None else argv)
    with told_in_a_line(_PROGRAM):
        train_teacher(parsed)


if __name__ == "__main__":
    main()
