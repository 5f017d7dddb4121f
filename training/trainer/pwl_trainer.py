"""The Trainer of PWL models: transformers' own, with one objective over all paths of a step.

Notation: N blocks; B samples, images of C channels, H x W pixels, say; K labels.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import EvalPrediction
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from pwl_hf.data.names import NO_LABEL
from pwl_hf.evaluation.labels import labels_of
from pwl_hf.evaluation.running import low_precision
from pwl_hf.evaluation.scores import stage_scores
from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.parts.planning import check_savable
from pwl_hf.modeling.publishing.processing import processing_files
from pwl_hf.modeling.repository.output_folder import check_output, paths_of_save
from pwl_hf.training.objective.distillation import Distillation
from pwl_hf.training.samples import ANSWERS, without_answers
from pwl_hf.training.trainer.checkpoints import CheckpointWriter, check_resumable, last_checkpoint, restore
from pwl_hf.training.trainer.hub import HubTrainer
from pwl_hf.training.trainer.mask_statistics import average_statistics
from pwl_hf.training.trainer.parameter_groups import names_within_norms, parameter_groups
from pwl_hf.training.trainer.step_log import StepLog
from pwl_hf.training.trainer.training_arguments import PWLTrainingArguments

Batch = dict[str, Any]


class Augments(Protocol):
    """What moves training images: see `pwl_hf.training.images.augmentation.Augmentation`."""

    def augment(self, pixel_values: torch.Tensor, sample_ids: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """A batch (B, C, H, W), each image changed in the way that (seed, step, sample id) says."""


class PWLTrainer(HubTrainer):
    """Trains the student and the converters of a PWL model.

    `model` is the PWL model, which is saved, pushed and seen by callbacks; what runs, in one forward pass a step, and
    what DDP wraps, is `objective`. The teacher is in no optimizer, and stays as it is to the last buffer.

    Batches are dicts of the model's inputs, such as `pixel_values` (B, C, H, W), of `labels` (B,), of tokens (B, L),
    and `sample_ids` (B,), the samples' numbers. Everything random depends on seeds, the step's number and these ids, so
    that a run is the same in one process or several (BatchNorm aside: each process normalises by its own images; and
    of words, over which each process takes its own mean) and when it is killed and resumed.

    Every `checkpoint-*` is a PWL repository; the teacher's shards in it are hard links to the copy written first.

    Args:
        model: A PWL model with everything resident.
        args: The options.
        objective: What a step minimises, made for `model`.
        train_dataset: The samples to train on, as a dataset of the batches' parts; its `collate`, if it has one, makes
            batches of them.
        eval_dataset: Those to measure on, or several by name.
        augmentation: How training images are moved, on their device; None for not at all.
        processing_class: The image processor, tokenizer or feature extractor, saved with the model.
        kwargs: Further arguments of transformers' Trainer: `callbacks`, `data_collator`, `optimizers`.

    Raises:
        ValueError: If the objective is of another model.
        StageError: If something of the model is not resident.
        SaveError: If the model holds what could not be saved, such as an adapter.

    Example:

        >>> objective = build_objective(model, ObjectiveArguments(), seed=0)  # doctest: +SKIP
        >>> trainer = PWLTrainer(model, args, objective, train_dataset=train, eval_dataset=test)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> trainer.evaluate()["eval_accuracy_stage_0"]  # doctest: +SKIP
    """

    # The objective's loss is a mean over the batch; Trainer divides it by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    model: PWLPreTrainedModel
    args: PWLTrainingArguments
    objective: Distillation

    def __init__(
        self,
        model: PWLPreTrainedModel,
        args: PWLTrainingArguments,
        objective: Distillation,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        augmentation: Augments | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        if objective.model is not model:
            raise ValueError("the objective is of another model: build it with the model that is given here")
        model.parts.refuse_absence()
        check_savable(model.parts)
        had_cache = hasattr(model.config, "use_cache")
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            compute_metrics=partial(_stage_metrics, labels_of(model.config)),
            **{"data_collator": getattr(train_dataset, "collate", None)} | kwargs,
        )
        if not had_cache:
            # Trainer sets it on every config, and it would be saved.
            del model.config.use_cache
        # For `remove_unused_columns`: the forward of the model does not take all that the objective does.
        self._signature_columns: Any = [*inspect.signature(type(model).forward).parameters, *ANSWERS]
        self.objective = objective
        self.augmentation = augmentation
        self._stages = list(model.schedule)
        self._writer = CheckpointWriter()
        self._step_log = StepLog()
        if args.torch_compile:
            # The blocks, since paths change from step to step and would be compiled again.
            model.compile(backend=args.torch_compile_backend, mode=args.torch_compile_mode)

    # --- What runs ----------------------------------------------------------------------------------------------

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        built = super()._build_accelerator_args(**kwargs)
        # The blocks are compiled by the model itself; accelerate would compile the objective.
        built["dynamo_plugin"] = type(built["dynamo_plugin"])(backend="no")
        return built

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        # Trainer calls what it gets here, and does not prepare it again, as it is not `self.model`.
        if not training:
            return self.objective
        known = self.model_wrapped
        of_ours = self.accelerator.unwrap_model(known) is self.objective
        wrapped: nn.Module = self.accelerator.prepare_model(known if of_ours else self.objective)
        return wrapped

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The objective of a batch of augmented images.

        Raises:
            ValueError: If images are to be augmented and have no numbers.
        """
        named, sample_ids = without_answers(inputs), inputs.get("sample_ids")
        step, main = self.state.global_step, self.model.main_input_name
        if self.augmentation is not None:
            if sample_ids is None:
                raise ValueError("augmentation needs sample_ids in every batch: give the dataset's items a number each")
            with torch.no_grad():
                named[main] = self.augmentation.augment(named[main], sample_ids, self.args.seed, step)
        named[main] = _laid_out(named[main])
        losses = model(named, inputs.get("labels"), step=step, sample_ids=sample_ids)
        terms = {name: value for name, value in losses.items() if name != "loss"}
        self._step_log.add(terms, len(named[main]))
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted: paths differ from step to step. Zero."""
        return 0

    # --- The optimizer ------------------------------------------------------------------------------------------

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As Trainer's, without the parameters of normalisation layers of any kind."""
        norms = names_within_norms(model)
        return [name for name in super().get_decay_parameter_names(model) if name not in norms]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the options: student and converters, each at its learning rate.

        Raises:
            ValueError: For an `optim` that chooses the parameters by itself, or if nothing requires gradients.
        """
        if self.optimizer is None:
            groups = parameter_groups(
                self.model,
                set(self.get_decay_parameter_names(self.model)),
                learning_rate=self.args.learning_rate,
                converter_lr_scale=self.args.converter_lr_scale,
                weight_decay=self.args.weight_decay,
            )
            if not groups:
                raise ValueError("nothing is to be trained: no parameter of student and converters requires gradients")
            given = self.optimizer_cls_and_kwargs
            made_by, options = given or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            chosen = {"params", "model", "optimizer_dict"}.intersection(options)
            if chosen or not isinstance(made_by, type) or not issubclass(made_by, torch.optim.Optimizer):
                raise ValueError(
                    f"optim={self.args.optim} chooses by itself what is trained, and would take the teacher as well: "
                    "choose one like adamw_torch or sgd, or give optimizers="
                )
            self.optimizer = made_by(groups, **options)
        return self.optimizer

    # --- The run ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:  # type: ignore[override]
        """Train, or go on with a run as if it had never ended.

        Args:
            resume_from_checkpoint: A checkpoint's folder, or true for the last whole one in `output_dir`.
            kwargs: As Trainer's.

        Raises:
            ValueError: If there is no such checkpoint, it is not whole, or it is of another model; with the first
                difference.
            OverwriteError: If `output_dir` holds files that the saved model would be written over, and that are not
                a PWL repository's.
            RepositoryError: If the model in it is damaged.
            TrainingError: If loss or weights are no longer finite; nothing of that is saved.
        """
        # Refuse before the first step what could not be saved at the end.
        check_output(self._output_dir, paths_of_save(self.model.num_blocks), advice="give another output_dir")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self._output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"there is no whole checkpoint in {self.args.output_dir!r} to resume from")
        return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Trainer would take one more step when a finished run is resumed.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        self._average_statistics()
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _average_statistics(self) -> None:
        if self.accelerator.num_processes > 1:
            mean = partial(self.accelerator.reduce, reduction="mean")
            average_statistics(self.model.student, mean)
            if self.objective.teacher_drift:
                average_statistics(self.model.teacher, mean)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's; a log of the loss also has every term of it, and samples a second of all processes."""
        if self.is_in_train and "loss" in logs:
            logs |= self._step_log.drain(self.accelerator.reduce, self.args.device)
        super().log(logs, start_time)

    # --- Measuring ----------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure every stage in one pass over the data; training goes on afterwards as if it had not been.

        Returns:
            `eval_accuracy_stage_0` (the student) to `eval_accuracy_stage_N` (the teacher), `eval_accuracy`, their
            mean, the same of `macro_f1` and, of tags, `span_f1`, and `eval_loss`, the mean of their cross entropies;
            the rest is Trainer's.

        Raises:
            ValueError: If the samples have no labels.
        """
        if self.is_in_train:
            self._average_statistics()
        was_training = self.model.training
        with self._step_log.paused(), _kept_random_state(), low_precision(self.model, self._stages):
            metrics = super().evaluate(*args, **kwargs)
        self.objective.train(was_training)
        return metrics

    def prediction_step(
        self, model: nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Cross entropy over all stages, the class that each stage answers (B, N + 1), and the labels (B,).

        Of tokens the answers are (B, L, N + 1) and the labels (B, L).
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        if labels is None:
            raise ValueError("the samples to measure on have no labels: give an eval_dataset that has, or none")
        with torch.no_grad(), self.accelerator.autocast():
            paths = self.model.shared_paths(without_answers(inputs))
            logits = torch.stack([paths(mask).logits for mask in self._stages], dim=-2).float()
            wanted = labels.flatten().repeat_interleave(len(self._stages))
            total = functional.cross_entropy(logits.flatten(0, -2), wanted, ignore_index=NO_LABEL, reduction="sum")
            loss = total / (wanted != NO_LABEL).sum().clamp_min(1)
        return loss, None if prediction_loss_only else logits.argmax(-1), labels

    # --- Checkpoints --------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir if output_dir is not None else self._output_dir
        # The teacher's folder is a checkpoint of its own, with what prepares its samples.
        texts = processing_files(self.processing_class) if self.processing_class is not None else {}
        # A checkpoint of this run may overwrite what an earlier run left there.
        path = Path(folder)
        is_own = path.parent == Path(self._output_dir) and path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
        self._writer.write(self.model, folder, texts=texts, overwrite=is_own)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._average_statistics()
        with self._step_log.paused():
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The Trainer's state, written next, marks the checkpoint as whole in every process.
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        check_resumable(resume_from_checkpoint)
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint is not None:
            self._restore(self.state.best_model_checkpoint)

    def _restore(self, checkpoint: str) -> None:
        manifest = restore(self.model, checkpoint, teacher_too=self.objective.teacher_drift)
        self._writer.adopt(checkpoint, manifest)


def _laid_out(images: torch.Tensor) -> torch.Tensor:
    """Images channels last on a CPU, whose convolutions are faster so; features follow, weights stay as they are."""
    if images.ndim != 4 or images.device.type != "cpu":
        return images
    return images.contiguous(memory_format=torch.channels_last)


def _stage_metrics(names: list[str], prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and F1 of each stage, and their means, from the classes by stage and the labels."""
    found = stage_scores(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), names)
    by_stage = {f"{name}_stage_{stage}": value for stage, scores in enumerate(found) for name, value in scores.items()}
    return by_stage | {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}


@contextmanager
def _kept_random_state() -> Iterator[None]:
    """Restore the random state of Python, numpy and torch afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    devices = [torch.accelerator.current_device_index()] if accelerator is not None else []
    with torch.random.fork_rng(devices=devices, device_type=accelerator.type if accelerator else "cuda"):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
