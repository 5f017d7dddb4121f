"""Mixup: images of two samples laid over one another, and their labels with them.

Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412).

Notation: B images of C channels, H x W pixels; K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv  # type: ignore[import-untyped]
from torch.nn import functional

from pwl_hf.training.images.noise import ring, uniforms

# Tells these draws from others of the same image and step.
_PURPOSE = 0x313


@dataclass(frozen=True)
class Mixup:
    """image = l image_i + (1 - l) image_j, and the labels likewise, where l is drawn from Beta(alpha, alpha).

    How much of an image stays depends on (seed, step, sample id) alone. Which image j comes over it is another one of
    its batch, and so depends on the batch of its process.

    Args:
        alpha: Above 0. 1 draws all parts alike; the greater, the nearer to one half.
        probability: Part of the images that are mixed; the others stay as they are.
    """

    alpha: float
    probability: float = 1.0

    def __call__(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None,
        sample_ids: torch.Tensor | None,
        *,
        num_labels: int,
        seed: int,
        step: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mix a batch.

        Args:
            pixel_values: (B, C, H, W), floating.
            labels: (B,), int64, or None.
            sample_ids: (B,), int64.
            num_labels: K.
            seed: The run's seed.
            step: The step's number.

        Returns:
            The images, and the labels as probabilities (B, K) in the images' dtype, or None. A batch of one image
            keeps it.

        Raises:
            ValueError: If there are no sample_ids.
        """
        if sample_ids is None:
            raise ValueError("mixup draws by sample_ids, but the batch has none: give them")
        kept, other = self.draw(sample_ids, seed, step)
        kept = kept.to(pixel_values.device, pixel_values.dtype)
        mixed = torch.lerp(pixel_values[other], pixel_values, kept[:, None, None, None])
        if labels is None:
            return mixed, None
        targets = functional.one_hot(labels, num_labels).to(pixel_values.dtype)
        return mixed, torch.lerp(targets[other], targets, kept[:, None])

    def draw(self, sample_ids: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """How much of each image stays, (B,) float32, and the place of the one that comes over it, (B,) int64."""
        chance, part, place = uniforms(sample_ids, 3, seed, step, _PURPOSE)
        drawn = torch.from_numpy(betaincinv(self.alpha, self.alpha, part.double().cpu().numpy())).to(part)
        kept = torch.where(chance < self.probability, drawn, torch.ones_like(drawn))
        # Once around in random order: no image is mixed with itself.
        return kept, ring(place.argsort(stable=True))
