"""Losses of distillation, each a pure function of tensors.

Notation: B images, K labels; z the logits, T a temperature.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the labels, the mean over samples.

    Args:
        logits: (B, K), floating.
        labels: (B,), int64; or each image's probabilities, (B, K), floating.
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
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    teacher_logits: torch.Tensor | None,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """Weighted sum, alpha hard + (1 - alpha) soft: what the student and every mixed path are trained on.

    Args:
        logits: (B, K), floating.
        labels: (B,), int64, or (B, K), as in `hard_loss`; may be None if alpha is 0.
        teacher_logits: (B, K); may be None if alpha is 1.
        alpha: The weight of the labels, 0 to 1.
        temperature: T > 0.
    """
    loss = torch.zeros((), device=logits.device)
    if labels is not None and alpha > 0:
        loss = loss + alpha * hard_loss(logits, labels)
    if teacher_logits is not None and alpha < 1:
        loss = loss + (1 - alpha) * soft_loss(logits, teacher_logits, temperature)
    return loss


def feature_distance(
    features: torch.Tensor, target: torch.Tensor, normalize: bool = False, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """D(a, b) = MSE(a, b) + 1 - cosine(a, b), the cosine over each image's features as one vector.

    The feature distance of Progressive Weight Loading (arXiv 2509.22319, the authors' code).

    Args:
        features: (B, ...), floating.
        target: The same shape; no gradient flows into it unless it requires one.
        normalize: Divide the squared error by the target's mean square (without gradient), so that layers of great
            features weigh no more than others. Ours.
        kept: (B, tokens), bool: the tokens that are no padding, which alone count; None for all. The error is the mean
            over samples of that over each one's tokens: a batch in parts has the mean of its parts' distances.
    """
    if kept is not None:
        # Zeros add nothing to a cosine.
        features, target = (states * kept[..., None] for states in (features, target))
    cosine = functional.cosine_similarity(features.flatten(1), target.flatten(1), dim=1)
    error = _mean_square(features - target, kept)
    if normalize:
        error = error / _mean_square(target.detach(), kept).clamp_min(torch.finfo(target.dtype).tiny)
    return error + 1 - cosine.mean()


def _mean_square(values: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The mean of squares: of tokens that are kept, over each sample, and then over samples."""
    if kept is None:
        return values.square().mean()
    return (values.square().mean(-1) * kept / kept.sum(1, keepdim=True).clamp_min(1)).sum(1).mean()
