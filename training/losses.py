"""Losses of distillation, each a pure function of tensors.

Notation: B images, K labels; z the logits, T a temperature.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the labels, the mean over images.

    Args:
        logits: (B, K), floating.
        labels: (B,), int64.
    """
    return functional.cross_entropy(logits, labels)


def soft_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(softmax(z_teacher / T) || softmax(z / T)), the mean over images.

    T^2 keeps the gradients' size as T changes (Hinton et al., arXiv 1503.02531, section 2).

    Args:
        logits: (B, K), floating.
        teacher_logits: (B, K); no gradient flows into them.
        temperature: T > 0.
    """
    log_p = functional.log_softmax(logits / temperature, dim=-1)
    log_q = functional.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    return functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def distillation_loss(
    logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor, alpha: float, temperature: float
) -> torch.Tensor:
    """Weighted sum, alpha hard + (1 - alpha) soft: what the student and every mixed path are trained on.

    Args:
        logits: (B, K), floating.
        labels: (B,), int64.
        teacher_logits: (B, K).
        alpha: The weight of the labels, 0 to 1.
        temperature: T > 0.
    """
    soft = soft_loss(logits, teacher_logits, temperature)
    return alpha * hard_loss(logits, labels) + (1 - alpha) * soft


def feature_distance(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """D(a, b) = MSE(a, b) + 1 - cosine(a, b), the cosine over each image's features as one vector.

    The feature distance of Progressive Weight Loading (arXiv 2509.22319, the authors' code).

    Args:
        features: (B, ...), floating.
        target: The same shape; no gradient flows into it unless it requires one.
    """
    cosine = functional.cosine_similarity(features.flatten(1), target.flatten(1), dim=1)
    return functional.mse_loss(features, target) + 1 - cosine.mean()
