"""Accuracies, of the weights as they were saved."""

from __future__ import annotations

import os

import torch
from torch import nn

from pwl_hf import PWLForImageClassification


@torch.no_grad()
def predict(model: nn.Module, pixel_values: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Logits (B, K) of images (B, C, H, W), in the mode that the model is in."""
    return torch.cat([model(pixel_values=batch).logits for batch in torch.split(pixel_values, batch_size)])


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The part of images whose greatest logit (B, K) is at their label (B,)."""
    return (logits.argmax(-1) == labels).double().mean().item()


def stage_accuracies(folder: str | os.PathLike[str], pixel_values: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """The accuracy of every stage of a saved repository, stepped through as a server would.

    Args:
        folder: The repository's folder.
        pixel_values: (B, C, H, W), floating.
        labels: (B,), int64.

    Returns:
        N + 1 fractions, the student's first and the teacher's last.
    """
    model = PWLForImageClassification.from_pretrained(folder)
    found = [accuracy(predict(model, pixel_values), labels)]
    while model.stage < model.num_stages:
        model.load_next_stage()
        found.append(accuracy(predict(model, pixel_values), labels))
    return found
