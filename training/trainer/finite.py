"""A Trainer that stops once its loss or weights are not finite, before it saves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import TrainOutput

from pwl_hf.modeling import TrainingError
from pwl_hf.modeling.finite import first_not_finite
from pwl_hf.training.trainer.checkpoints import last_checkpoint
from pwl_hf.training.trainer.lengths import LengthsTrainer


class FiniteTrainer(LengthsTrainer):
    """transformers' Trainer, which ends with a `TrainingError` rather than train, save or push NaN.

    The first step whose loss is not finite is noted where the loss was computed, and read when the loss is logged,
    before a save and at the end: no step waits for its device. Steps that an fp16 scaler skips are no fault: their loss
    is finite.
    """

    # The number of that step, 0 if there is none.
    _bad_step: torch.Tensor | None = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As Trainer's.

        Raises:
            TrainingError: If weights are not finite before the first step, or loss or weights at a later one; what was
                saved before stays as it is.
        """
        self._bad_step = None
        self._check_weights("before the first step")
        return super().train(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Trainer's; whether its loss is finite is kept, to be read later."""
        loss = super().training_step(*args, **kwargs)
        bad = torch.zeros(1, dtype=torch.int64, device=loss.device) if self._bad_step is None else self._bad_step
        good = torch.isfinite(loss.detach()).all() | (bad > 0)
        self._bad_step = torch.where(good, bad, self.state.global_step + 1)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's; in training, after a look at the losses since the last log.

        Raises:
            TrainingError: If one was not finite, in any process; in all of them.
        """
        if self.is_in_train and "loss" in logs:
            self._check_loss(of_all=True)
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As Trainer's; in training, after a look at loss and weights.

        Raises:
            TrainingError: If they are not finite.
        """
        if self.is_in_train:
            self._check()
        return super().evaluate(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's, after a look at loss and weights; what the folder held before stays if they are not finite.

        Raises:
            TrainingError: If they are not finite.
        """
        self._check()
        super().save_model(output_dir, _internal_call)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # Before a best checkpoint comes back, or a run without any ends as if all were well.
        self._check()
        return super()._finalize_training(*args, **kwargs)

    def _check(self) -> None:
        self._check_loss(of_all=False)
        self._check_weights(f"at step {self.state.global_step}")

    def _check_loss(self, *, of_all: bool) -> None:
        if self._bad_step is None:
            return
        found = self.accelerator.gather(self._bad_step) if of_all else self._bad_step
        if bad := [step for step in found.tolist() if step]:
            raise self._error(f"the loss of step {min(bad)} is NaN or infinite")

    def _check_weights(self, when: str) -> None:
        network: nn.Module = self.accelerator.unwrap_model(self.model)
        tensors = [*network.named_parameters(), *network.named_buffers()]
        # A mask's own BatchNorm statistics are in no state dict.
        for mask, found in getattr(network, "statistics", {}).items():
            tensors += [(f"statistics/{mask}/{name}", tensor) for name, tensor in found.items()]
        if (name := first_not_finite(tensors)) is not None:
            raise self._error(f"{name!r} holds NaN or infinity {when}")

    def _error(self, what: str) -> TrainingError:
        kept = None if self.args.output_dir is None else last_checkpoint(self.args.output_dir)
        left = f"the last whole checkpoint is {kept}" if kept is not None else "there is no checkpoint"
        advice = f"lower the learning rate ({self.args.learning_rate:g}), clip gradients (max_grad_norm), warm up, "
        advice += "train in fp32 or bf16 if it was fp16, and check the data for NaN"
        return TrainingError(f"training stopped, nothing of it is saved: {what}; {left}: {advice}")
