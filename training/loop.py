"""The training loop: accelerate's, the same for the teacher and for the distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from pwl_hf.modeling import PWLForImageClassification
from pwl_hf.training.arguments import DigitsArguments
from pwl_hf.training.augmentation import AUGMENTATIONS
from pwl_hf.training.losses import hard_loss


class Supervised(nn.Module):
    """Labels alone, for the teacher.

    Args:
        model: An image classifier of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """The loss of a batch: images (B, C, H, W), labels (B,) int64; `step` plays no part."""
        return {"loss": hard_loss(self.model(pixel_values=pixel_values).logits, labels)}


def parameter_groups(model: PWLForImageClassification, arguments: DigitsArguments) -> list[dict[str, Any]]:
    """The student at the full learning rate, the converters at their part of it; the teacher is in none."""
    converters = [*model.encoders.parameters(), *model.decoders.parameters()]
    rate = arguments.learning_rate
    groups = [{"params": list(model.student.parameters()), "lr": rate}]
    if converters:
        groups.append({"params": converters, "lr": rate * arguments.converter_lr_scale})
    return groups


def fit(
    accelerator: Accelerator,
    objective: nn.Module,
    groups: Sequence[dict[str, Any]],
    data: TensorDataset,
    *,
    epochs: float,
    arguments: DigitsArguments,
    title: str,
) -> float:
    """Minimise an objective with AdamW, a warm-up and a cosine schedule, and clipped gradients.

    Args:
        accelerator: Where it runs, in what precision and in how many processes.
        objective: Takes images (B, C, H, W), labels (B,) and the step's number, returns a dict with `loss`.
        groups: What is trained, as torch's optimizers take it.
        data: Images (n, C, H, W) and labels (n,); images are augmented anew at every step.
        epochs: How long; the last one may be a part.
        arguments: Everything else.
        title: What the progress bar calls it.

    Returns:
        The last step's loss.
    """
    # A seed for the order alone, so that it does not depend on how the weights were drawn.
    order = torch.Generator().manual_seed(arguments.seed)
    loader = DataLoader(data, arguments.batch_size, shuffle=True, generator=order)
    optimizer = torch.optim.AdamW(list(groups), lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    objective, optimizer, loader = accelerator.prepare(objective, optimizer, loader)
    steps = math.ceil(epochs * len(loader))
    if arguments.max_steps > 0:
        steps = min(steps, arguments.max_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(arguments.warmup * steps), steps)
    objective.train()
    step, loss = 0, torch.zeros(())
    with tqdm(total=steps, desc=title, disable=arguments.disable_tqdm) as bar:
        while step < steps:
            for pixel_values, labels in loader:
                # Each process augments its own images, the same way in every run of the seed.
                first = accelerator.process_index * len(labels)
                places = torch.arange(first, first + len(labels), device=labels.device)
                moved = AUGMENTATIONS["digits"].augment(pixel_values, places, arguments.seed, step)
                losses = objective(moved, labels, step)
                loss = losses["loss"]
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(objective.parameters(), arguments.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                step += 1
                bar.update()
                if step == steps:
                    break
            bar.set_postfix({name: f"{value.item():.3f}" for name, value in losses.items()})
    objective.eval()
    accelerator.free_memory()
    return loss.item()
