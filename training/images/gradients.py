"""Integrated gradients: how much each pixel had to do with a network's answer.

Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks" (arXiv 1703.01365), computed by captum.

The baseline is a black image, as the image processor makes one: what is 0 before images are normalised, which
shifting and scaling the images does not change. The sums of an image's attributions are then the difference of its
logit from the black image's, up to the integral's error.

Notation: B images of C channels, H x W pixels; K labels.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor

from pwl_hf.data.processing import to_tensor

# Any size will do: processors resize.
_SIDE = 64


class PixelRange(NamedTuple):
    """What a processor makes of black and of white: each channel's values, (C, 1, 1) float32."""

    black: torch.Tensor
    white: torch.Tensor


def pixel_range(processor: BaseImageProcessor, num_channels: int = 3) -> PixelRange:
    """The range of a processor's pixel values.

    Args:
        processor: The processor.
        num_channels: Of the images that it makes.

    Raises:
        ValueError: If it does not make constant images of constant images.
    """
    found = []
    for name in ("black", "white"):
        (pixel_values,) = to_tensor([Image.new("RGB", (_SIDE, _SIDE), name)], processor, num_channels)
        values = pixel_values.float().amin((1, 2), keepdim=True)
        if not torch.allclose(pixel_values.float(), values.expand(pixel_values.shape), atol=1e-3):
            raise ValueError(
                f"{type(processor).__name__} does not make an image of one value a channel of a {name} one, so there "
                "is no baseline for integrated gradients: set ig_probability to 0"
            )
        found.append(values)
    return PixelRange(*found)


def integrated_gradients(
    network: nn.Module,
    pixel_values: torch.Tensor,
    target: torch.Tensor,
    baseline: torch.Tensor,
    *,
    steps: int = 50,
    internal_batch_size: int = 256,
) -> torch.Tensor:
    """The attributions of pixels to logits: the absolute values of each channel's, added up.

    Args:
        network: An image classifier of transformers, in eval mode; it is left as it is.
        pixel_values: (B, C, H, W), floating.
        target: Which logit, (B,) int64.
        baseline: (C, 1, 1).
        steps: Points of the Gauss-Legendre quadrature: each is a forward and a backward pass.
        internal_batch_size: Images in one pass, of all points of all images.

    Returns:
        (B, H, W) float32, not negative.

    Raises:
        ValueError: If the network is in training mode.
    """
    from captum.attr import IntegratedGradients

    if network.training:
        raise ValueError("integrated gradients are of a network in eval mode: call its eval()")

    def logits(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network(pixel_values=images).logits
        return found

    method = IntegratedGradients(logits)
    maps = []
    # Captum takes at least one point of every image into a pass.
    for images, targets in zip(pixel_values.split(internal_batch_size), target.split(internal_batch_size), strict=True):
        attributions = method.attribute(
            images,
            baselines=baseline.to(images).expand_as(images),
            target=targets,
            n_steps=steps,
            internal_batch_size=internal_batch_size,
        )
        maps.append(attributions.detach().abs().sum(1).float())
    return torch.cat(maps)


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's tensors by name: two networks that answer differently have different ones."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(raw.numpy())
    return digest.hexdigest()
