"""Attention transfer: the student looks where the teacher looks.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention" (arXiv 1612.03928), section 3.1.

Notation: B images; a feature is (B, C, H, W) or, of tokens, (B, L, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.training.objective.passes import Passes


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Where features are strong: the mean of squares over channels, of length 1 for each image.

    Args:
        features: (B, C, H, W), or tokens (B, L, C); special tokens are places like others.

    Returns:
        (B, H W) or (B, L), float32 at least. Zero where all features of an image are.

    Raises:
        ValueError: For any other number of dimensions.
    """
    if features.ndim not in (3, 4):
        raise ValueError(f"features must be (B, C, H, W) or (B, L, C), got {tuple(features.shape)}")
    # In half precision squares overflow.
    strength = features.to(torch.promote_types(features.dtype, torch.float32)).square()
    return functional.normalize(strength.mean(dim=1 if features.ndim == 4 else 2).flatten(1), dim=1)


def attention_distance(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MSE of two attention maps, as in the authors' code; the paper's norm of the difference is its root, unaveraged.

    Args:
        features: (B, C, H, W) or (B, L, C).
        target: The same geometry, in any width; no gradient flows into it.

    Raises:
        ValueError: If the geometries differ.
    """
    found, wanted = attention_map(features), attention_map(target.detach())
    if found.shape != wanted.shape:
        raise ValueError(
            f"attention maps need the same places: got features {tuple(features.shape)} and {tuple(target.shape)}"
        )
    return functional.mse_loss(found, wanted)


@dataclass(frozen=True)
class AttentionTransfer:
    """The mean `attention_distance` of the student's features to the teacher's, over the ends of blocks.

    Where blocks end, the two networks have the same geometry: a PWL config makes sure of it.

    Args:
        blocks: At the ends of which blocks, from 1 to N; all of them by default, as in the paper.
    """

    blocks: tuple[int, ...] | None = None
    name: ClassVar[str] = "attention"

    def check(self, model: PWLPreTrainedModel) -> None:
        """Raise what the first step would.

        Raises:
            ValueError: If there is no such block.
        """
        last = model.num_blocks
        for block in self.blocks or ():
            if not 1 <= block <= last:
                raise ValueError(f"attention_blocks must be from 1 to {last}, the number of blocks, got {block}")

    def __call__(self, passes: Passes) -> torch.Tensor:
        """The term."""
        teacher, student = passes.teacher.hidden_states, passes.student.hidden_states
        blocks = self.blocks or range(1, passes.num_blocks + 1)
        return torch.stack([attention_distance(student[i - 1], teacher[i - 1]) for i in blocks]).mean()
