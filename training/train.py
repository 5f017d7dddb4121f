#!/usr/bin/env python
"""Train a PWL model: a student and converters, along all paths, beside a frozen teacher.

    accelerate launch training/train.py vit-digits --output_dir digits-pwl
    accelerate launch training/train.py vgg-cifar10 --teacher vgg-teacher --output_dir vgg-pwl --bf16
    accelerate launch training/train.py bert-banking77 --output_dir banking-pwl
    accelerate launch training/train.py --dataset path/to/images --teacher google/vit-base-patch16-224 \
        --student_preset slim --num_train_epochs 30 --output_dir my-pwl
    accelerate launch training/train.py digits-pwl/training_args.yaml --output_dir again

Leading words are recipes: YAML or JSON files of options, or names of those in training/recipes; a later one wins, and
the line over all. The output folder is a PWL repository: the accuracy of every stage, measured on the saved files,
stands in its `pwl_index.json` and its model card, and all options of the run in its `training_args.yaml`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from pwl_hf.data.processing import channels_of
from pwl_hf.modeling import PWLConfig, PWLPreTrainedModel
from pwl_hf.modeling.loading import read_config as read_pwl_config
from pwl_hf.modeling.repository.output_folder import check_output, paths_of_save
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.opening import samples_of
from pwl_hf.own_families import import_families
from pwl_hf.training.assembly import assemble, begin_as_teacher, checkpoint_of
from pwl_hf.training.command_line import CommandLine, Parsed, told_in_a_line, write_options
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.finishing import measure, own_statistics
from pwl_hf.training.images.gradient_arguments import GradientArguments
from pwl_hf.training.images.overlay import gradient_overlay
from pwl_hf.training.networks.building import read_config
from pwl_hf.training.networks.network_arguments import NetworkArguments
from pwl_hf.training.objective.distillation import build_objective, check_drift
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.samples import some_inputs
from pwl_hf.training.splits import numbered_as, open_eval_split, open_training_split, pin_where_copied, read_split
from pwl_hf.training.tasks import refuse_options_of_pixels, refuse_other_options, task_of
from pwl_hf.training.trainer.pwl_trainer import PWLTrainer
from pwl_hf.training.trainer.training_arguments import PWLTrainingArguments

_PROGRAM = "training/train.py"


def command_line() -> CommandLine:
    """The options of this script."""
    parts = (NetworkArguments, DataArguments, ObjectiveArguments, GradientArguments, PWLTrainingArguments)
    return CommandLine(parts, _PROGRAM, __doc__.splitlines()[0], required=("output_dir", "dataset"))


def train(parsed: Parsed) -> list[float]:
    """Train, save, measure and, if asked for, push.

    Args:
        parsed: The options.

    Returns:
        The accuracy of each stage, the student's first; nothing without a split to measure on, and in processes
        other than the main one.

    Raises:
        ValueError: If networks, data and options do not fit together.
        OverwriteError: If `output_dir` is a network's folder, or holds files that are not a PWL repository's and would
            be written over.
        huggingface_hub.errors.StrictDataclassError: If teacher and student cannot be joined, with the reason.
        RepositoryError: If a checkpoint is not what its network needs, with the tensors' names.
        TrainingError: If loss or weights are no longer finite; nothing of that is saved, measured or pushed.
    """
    networks, data, objective_arguments, gradients, args = parsed.parts
    if networks.family_module is not None:
        import_families(networks.family_module)
    folder, checkpoint = Path(args.output_dir), checkpoint_of(args)
    # Before anything is loaded or trained: what could not be, or not be saved at the end.
    check_drift(objective_arguments, share_embedder=networks.share_embedder)
    given = [name for name in (networks.teacher, networks.student) if name is not None]
    check_output(folder, paths_of_save(networks.num_blocks or 1), inputs=given, advice="give another output_dir")
    pin_where_copied(args)
    task = _task(networks, checkpoint)
    refuse_other_options(task, parsed.parts)
    train_split = open_training_split(data, samples_of(task), args.hub_token)
    eval_split = open_eval_split(data, samples_of(task), train_split.label_names, args.hub_token)
    label_names = train_split.label_names or (eval_split.label_names if eval_split is not None else None)
    model, processing = assemble(networks, data, args, label_names, task, checkpoint)
    refuse_options_of_pixels(model.config.teacher_config, parsed.parts)
    # Before training: at its end the saved files are measured by the same rule.
    name = checkpoint or networks.model or networks.teacher or "the model"
    train_split, numbered, _ = numbered_as(model.config, name, train_split, eval_split)
    samples = partial(
        read_split,
        processing=processing,
        data=data,
        num_channels=channels_of(model.config.teacher_config),
        max_length=model.config.max_tokens,
        seed=args.seed,
    )
    train_dataset = samples(train_split, training=True)
    if checkpoint is None:
        begin_as_teacher(model, networks, train_dataset)
    if networks.fit_converters == "before" and checkpoint is None:
        _fit_converters(model, train_dataset)
    trainer = PWLTrainer(
        model=model,
        args=args,
        objective=build_objective(model, objective_arguments, args.seed),
        train_dataset=train_dataset,
        eval_dataset=samples(numbered, training=False),
        augmentation=data.augment() if samples_of(task) == "images" else None,
        processing_class=processing,
    )
    if gradients.ig_probability:
        # Here, for the trainer has brought the teacher to its device.
        trainer.augmentation = gradient_overlay(
            gradients,
            model.teacher,
            processing,
            train_dataset,
            title=train_split.title,
            folder=folder / "gradient-maps",
            uses_labels=objective_arguments.uses_labels,
            seed=args.seed,
            then=data.augment(),
            num_workers=args.dataloader_num_workers,
            disable_tqdm=args.disable_tqdm,
        )
    metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    if networks.fit_converters == "after":
        _fit_converters(model, train_dataset)
    own_statistics(model, train_dataset, networks.statistics_images)
    if networks.quantised_tier is not None:
        model.add_tier(networks.quantised_tier)

    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    accuracies: list[float] = []
    if trainer.is_world_process_zero():
        write_options(parsed.options, folder, _PROGRAM)
        if eval_split is not None:
            size, device = args.per_device_eval_batch_size, trainer.accelerator.device
            names = eval_split.label_names
            report = measure(folder, data, label_names=names, batch_size=size, device=device, token=args.hub_token)
            accuracies = report.evaluation.accuracies
            found = {f"eval_accuracy_stage_{stage}": value for stage, value in enumerate(accuracies)}
            trainer.save_metrics("eval", {"eval_accuracy": sum(accuracies) / len(accuracies), **found})
    trainer.accelerator.wait_for_everyone()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.end_training()
    return accuracies


def _task(networks: NetworkArguments, checkpoint: str | None) -> str:
    """The task of what is trained: that of the checkpoint, of the repository or of the teacher."""
    name: str | None = checkpoint or networks.model
    config: PreTrainedConfig | None = None
    if name is not None:
        config = read_pwl_config(Repository.open(name), PWLConfig, {})
    elif networks.teacher is not None:
        name, config = networks.teacher, read_config(networks.teacher)
    return task_of(networks.task, config, repr(name))


def _fit_converters(model: PWLPreTrainedModel, dataset: Any) -> None:
    # Some hundred samples determine an affine map (SN-Net, arXiv 2302.06586).
    model.fit_converters(list(some_inputs(dataset, 512)))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train; wrong options, and errors of ours, end the program with a message."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parsed = command_line().parse(sys.argv[1:] if argv is None else argv)
    with told_in_a_line(_PROGRAM):
        train(parsed)


if __name__ == "__main__":
    main()
