"""Training a network on labels, with transformers' own Trainer: how teachers are made.

Notation: B samples, images of C channels, H x W pixels, say; K labels.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from pwl_hf.data.names import numbers_of
from pwl_hf.data.opening import Split
from pwl_hf.data.processing import channels_of
from pwl_hf.evaluation.labels import check_one_label, labels_of
from pwl_hf.evaluation.scores import stage_scores
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.parts.construction import load_network
from pwl_hf.opening import samples_of
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.images.augmentation import Augmentation
from pwl_hf.training.networks.building import new_teacher, teacher_config
from pwl_hf.training.networks.network_arguments import TeacherArguments
from pwl_hf.training.networks.processing import processing_for
from pwl_hf.training.splits import numbered_as, open_eval_split, open_training_split, pin_where_copied, read_split
from pwl_hf.training.tasks import refuse_options_of_pixels, refuse_other_options, task_of
from pwl_hf.training.trainer.finite import FiniteTrainer

logger = logging.getLogger(__name__)


class SupervisedTrainer(FiniteTrainer):
    """transformers' Trainer with our data: images are augmented on their device, each by its number and the step.

    Args:
        task: The task, by its Auto class.
        augmentation: How training images are moved; None for not at all.
        kwargs: The Trainer's own; the `collate` of `train_dataset`, if it has one, makes batches.
    """

    def __init__(self, *, task: str, augmentation: Augmentation | None, **kwargs: Any) -> None:
        super().__init__(**{"data_collator": getattr(kwargs.get("train_dataset"), "collate", None)} | kwargs)
        self.task = task
        self.augmentation = augmentation
        parameters = inspect.signature(type(self.accelerator.unwrap_model(self.model)).forward).parameters
        # As Trainer's own `remove_unused_columns`: tokenizers tell more than some networks take.
        self._taken = {name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD}
        # The networks' forward takes any keyword, and so seems to scale its loss by the accumulated batch itself.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own loss, of augmented images while the model trains."""
        sample_ids = inputs["sample_ids"]
        inputs = {name: value for name, value in inputs.items() if name in self._taken}
        if model.training and self.augmentation is not None:
            seed, step = self.args.seed, self.state.global_step
            inputs["pixel_values"] = self.augmentation.augment(inputs["pixel_values"], sample_ids, seed, step)
        return super().compute_loss(model, inputs, *args, **kwargs)

    # transformers writes checkpoints under the names of its files and reads them as those of its modules, without a
    # word about what did not fit: a resumed ViT would start from scratch.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        network = self.accelerator.unwrap_model(self.model if model is None else model)
        network.load_state_dict(load_network("teacher", resume_from_checkpoint, self.task).state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle, with the Hub's token in it; nothing reads it.
        Path(str(output_dir or self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)


def fit_teacher(
    teacher: TeacherArguments, data: DataArguments, args: TrainingArguments, resume: str | bool | None = None
) -> tuple[SupervisedTrainer, dict[str, float]]:
    """Train a teacher.

    Args:
        teacher: Which network.
        data: On what, and how it is augmented.
        args: How.
        resume: A checkpoint to go on from, or true for the last one in the output folder.

    Returns:
        The trainer, with the trained `model` and what prepares its samples as `processing_class`, and the training's
        metrics.

    Raises:
        ValueError: If the samples have no labels, or options do not fit the network or the data.
        RepositoryError: If the network's checkpoint lacks tensors or has some that would be lost.
        TrainingError: If loss or weights are no longer finite.
    """
    # Read by column, collated by name: what the model's forward takes says nothing of what is needed.
    args.remove_unused_columns = False
    args.label_names = ["labels"]
    pin_where_copied(args)
    task = task_of(teacher.task, teacher_config(teacher), teacher.model or teacher.config or str(teacher.model_type))
    refuse_other_options(task, (teacher, data))
    train = open_training_split(data, samples_of(task), args.hub_token)
    if train.label_names is None:
        raise ValueError(f"{train.title} has no labels whose names are known: a teacher needs them; give class_names")
    evaluation = open_eval_split(data, samples_of(task), train.label_names, args.hub_token)
    set_seed(args.seed)
    model = new_teacher(teacher, train.label_names, task)
    check_one_label(model.config, "the network")
    refuse_options_of_pixels(model.config, (teacher, data))
    train, evaluation = _as_named(model, teacher.model or "the network", train, evaluation)
    processing = processing_for(task, teacher.model, model.config, teacher)
    samples = partial(
        read_split,
        processing=processing,
        data=data,
        num_channels=channels_of(model.config),
        max_length=family_of(model.config).max_tokens(model.config),
        seed=args.seed,
    )
    trainer = SupervisedTrainer(
        task=task,
        model=model,
        args=args,
        augmentation=data.augment() if samples_of(task) == "images" else None,
        train_dataset=samples(train, training=True),
        eval_dataset=samples(evaluation, training=False),
        processing_class=processing,
        compute_metrics=partial(_scores, labels_of(model.config)),
        preprocess_logits_for_metrics=_winners,
    )
    result = trainer.train(resume_from_checkpoint=resume)
    return trainer, result.metrics


def _as_named(model: PreTrainedModel, name: str, train: Split, evaluation: Split | None) -> tuple[Split, Split | None]:
    """Both splits numbered as the network's labels; where these have other names, they get the data's."""
    label_names = train.label_names or []
    train, evaluation, numbers = numbered_as(model.config, name, train, evaluation)
    own = labels_of(model.config)
    theirs = [own[number].strip().casefold() for number in numbers]
    # It is trained to be these; numbers are no better names than those that it has.
    if theirs != [name.strip().casefold() for name in label_names] and numbers_of(label_names) is None:
        model.config.id2label = dict(zip(numbers, label_names, strict=True))
        model.config.label2id = {label: number for number, label in model.config.id2label.items()}
    return train, evaluation


def trained(trainer: SupervisedTrainer) -> PreTrainedModel:
    """The network of a trainer, in eval mode and without gradients left over."""
    model: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model)
    model.zero_grad(set_to_none=True)
    return model.eval()


def _winners(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # What is gathered over all of the data: one number an answer rather than K.
    return logits.argmax(-1)


def _scores(names: Sequence[str], prediction: EvalPrediction) -> dict[str, float]:
    answers, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    (found,) = stage_scores(answers[..., None], labels, names)
    return found
