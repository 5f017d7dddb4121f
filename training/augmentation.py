"""The augmentation of the digits, on batches of tensors.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from pwl_hf.data.digits import SIZE

# What an image is turned, scaled and shifted by at most. A mirrored digit is no digit, so nothing is flipped.
_DEGREES, _SCALE, _PIXELS = 10.0, 0.1, 0.5


def augment(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn by up to 10 degrees, scale by up to 10 % and shift by up to half an original pixel, each image on its own.

    Args:
        pixel_values: (B, C, H, W), floating, of any device. What moves in from outside is background: each
            image's own minimum.
        generator: A CPU generator, so that every device draws the same.

    Returns:
        The same shape, dtype and device.
    """
    angle, scale, right, down = torch.rand(4, len(pixel_values), generator=generator) * 2 - 1
    angle, scale = angle * math.radians(_DEGREES), 1 + scale * _SCALE
    # Coordinates of affine_grid go from -1 to 1 over the image.
    shift = _PIXELS * 2 / SIZE
    rows = [
        torch.stack([angle.cos() * scale, -angle.sin() * scale, right * shift], dim=1),
        torch.stack([angle.sin() * scale, angle.cos() * scale, down * shift], dim=1),
    ]
    theta = torch.stack(rows, dim=1).to(pixel_values.device, pixel_values.dtype)
    grid = functional.affine_grid(theta, list(pixel_values.shape), align_corners=False)
    background = pixel_values.amin((2, 3), keepdim=True)
    return functional.grid_sample(pixel_values - background, grid, align_corners=False) + background
