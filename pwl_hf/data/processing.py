"""From images to what a model takes.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import BaseImageProcessor


def to_tensor(images: Sequence[Image.Image], processor: BaseImageProcessor) -> torch.Tensor:
    """Images as a model takes them, (B, C, H, W) float: training and use share the one processor."""
    rgb = [image.convert("RGB") for image in images]
    pixel_values: torch.Tensor = processor(images=rgb, return_tensors="pt")["pixel_values"]
    return pixel_values
