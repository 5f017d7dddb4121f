"""What a step minimises, as modules: one forward pass a step, as distributed training needs it.

Notation: N blocks, boundaries 1..N-1; B images of C channels, H x W pixels; t_i and s_i are the features that
teacher and student have at boundary i, e_i and d_i the converters there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from pwl_hf.modeling import PWLForImageClassification
from pwl_hf.training.losses import distillation_loss, feature_distance, hard_loss
from pwl_hf.training.masks import prefix_masks, sample_mask

Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """The weights of the terms of `Distillation`.

    Args:
        alpha: The labels' part in the loss of each path.
        temperature: T of the distillation.
        prefix: The mean loss of the stages' paths.
        mask: The loss of one random path that is no stage.
        features: The feature terms, sync and recon.
    """

    alpha: float = 0.4
    temperature: float = 2.0
    prefix: float = 1.0
    mask: float = 0.5
    features: float = 0.0


class Supervised(nn.Module):
    """Labels alone, for the teacher.

    Args:
        model: An image classifier of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, step: int) -> Losses:
        """The loss of a batch: images (B, C, H, W), labels (B,) int64; `step` plays no part."""
        return {"loss": hard_loss(self.model(pixel_values=pixel_values).logits, labels)}


class Distillation(nn.Module):
    """All stages at every step, and one other path.

    loss = student + w_prefix mean_k path(T^k S^(N-k)) + w_mask path(random other mask)
         + w_features (sync + recon), where a path's loss is `distillation_loss` and

    sync  = mean_i D(e_i(t_i), s_i) + D(d_i(s_i), t_i)
    recon = mean_i D(d_i(e_i(t_i)), t_i) + D(e_i(d_i(s_i)), s_i)

    After arXiv 2509.22319; that all stages are trained at every step and that every path is given the
    labels is ours. The teacher answers without gradients, and being in eval mode always it never changes.

    Args:
        model: A PWL model with everything resident.
        weights: The weights of the terms.
        seed: The seed of the random masks.
    """

    def __init__(self, model: PWLForImageClassification, weights: Weights, seed: int) -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        self.seed = seed

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor, step: int) -> Losses:
        """The loss of a batch.

        Args:
            pixel_values: (B, C, H, W), floating.
            labels: (B,), int64.
            step: The step's number, for the random mask.

        Returns:
            The scalar `loss`, and its terms without gradients.
        """
        num_stages, weights = self.model.num_stages, self.weights
        with torch.no_grad():
            teacher = self.model(pixel_values, sources="T" * num_stages, output_hidden_states=True)
        student = self.model(pixel_values, sources="S" * num_stages, output_hidden_states=True)

        def path_loss(logits: torch.Tensor) -> torch.Tensor:
            return distillation_loss(logits, labels, teacher.logits, weights.alpha, weights.temperature)

        terms = {"student": path_loss(student.logits)}
        loss = terms["student"]
        if weights.prefix and num_stages > 1:
            paths = [path_loss(self.model(pixel_values, sources=mask).logits) for mask in prefix_masks(num_stages)]
            terms["prefix"] = torch.stack(paths).mean()
            loss = loss + weights.prefix * terms["prefix"]
        mask = sample_mask(num_stages, self.seed, step)
        if weights.mask and mask is not None:
            terms["mask"] = path_loss(self.model(pixel_values, sources=mask).logits)
            loss = loss + weights.mask * terms["mask"]
        if weights.features and num_stages > 1:
            terms["features"] = self._feature_loss(teacher.hidden_states, student.hidden_states)
            loss = loss + weights.features * terms["features"]
        return {"loss": loss} | {name: term.detach() for name, term in terms.items()}

    def _feature_loss(self, teacher: tuple[torch.Tensor, ...], student: tuple[torch.Tensor, ...]) -> torch.Tensor:
        found = []
        for i in range(1, self.model.num_stages):
            encode, decode = self.model.encoders[str(i)], self.model.decoders[str(i)]
            t, s = teacher[i - 1], student[i - 1]
            encoded, decoded = encode(t), decode(s)
            sync = feature_distance(encoded, s) + feature_distance(decoded, t)
            recon = feature_distance(decode(encoded), t) + feature_distance(encode(decoded), s)
            found.append(sync + recon)
        return torch.stack(found).mean()
