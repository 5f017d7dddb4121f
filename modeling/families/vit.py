"""ViT, DeiT and DINOv2: isotropic transformers, one level, a unit a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch

from .base import Boundary, Family, Features, GetModule, Inputs, pair, pixels_of, transformers_class

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


class ViTFamily(Family):
    """ViT (arXiv 2010.11929)."""

    model_type = "vit"
    interpolates = True
    takes = "images"
    class_name = "ViTForImageClassification"
    layers: ClassVar[str] = "vit.layers"
    special_tokens = 1

    def model_class(self) -> type[PreTrainedModel]:
        return transformers_class(self.class_name)

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return (config.num_hidden_layers,)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        return boundary_of_patches(config, self.special_tokens, any_size=not self.interpolates)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return (f"{self.model_type}.embeddings",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        return (f"{self.layers}.{unit}",)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return (f"{self.model_type}.layernorm", "classifier")

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed, get(f"{self.model_type}.embeddings"))

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        return partial(_run_layer, get(f"{self.layers}.{unit}"))

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify_first_token, get(f"{self.model_type}.layernorm"), get("classifier"))


class DeiTFamily(ViTFamily):
    """DeiT (arXiv 2012.12877), with its distillation token and without a distillation head."""

    model_type = "deit"
    class_name = "DeiTForImageClassification"
    layers: ClassVar[str] = "deit.layers"
    special_tokens = 2


class Dinov2Family(ViTFamily):
    """DINOv2 (arXiv 2304.07193); it always interpolates its position embeddings."""

    model_type = "dinov2"
    interpolates = False
    class_name = "Dinov2ForImageClassification"
    layers: ClassVar[str] = "dinov2.encoder.layer"

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed_any_size, get("dinov2.embeddings"))

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify_first_and_mean, get("dinov2.layernorm"), get("classifier"))


def boundary_of_patches(config: PreTrainedConfig, special_tokens: int, *, any_size: bool) -> Boundary:
    """The features of a network whose layers all see the same patches.

    Args:
        config: Its config.
        special_tokens: How many tokens stand before the patches.
        any_size: Whether it takes images of another size than the config names.
    """
    height, width = pair(config.image_size)
    patch_height, patch_width = pair(config.patch_size)
    geometry = (
        f"a {height // patch_height}x{width // patch_width} grid of {patch_height}x{patch_width} patches and "
        f"{special_tokens} special token(s)"
    )
    # Images of another size are refused, also where they give the same grid.
    image_size = None if any_size else (height, width)
    return Boundary(config.hidden_size, geometry, channels_first=False, image_size=image_size)


def _embed(embeddings: nn.Module, inputs: Inputs) -> Features:
    interpolate = inputs.get("interpolate_pos_encoding")
    return Features(embeddings(pixels_of(inputs, embeddings), interpolate_pos_encoding=interpolate))


def _embed_any_size(embeddings: nn.Module, inputs: Inputs) -> Features:
    return Features(embeddings(pixels_of(inputs, embeddings)))


def _run_layer(layer: nn.Module, features: Features) -> Features:
    # No mask: images are never padded.
    return Features(layer(features.tensor, None))


def _classify_first_token(layernorm: nn.Module, classifier: nn.Module, features: Features) -> torch.Tensor:
    logits: torch.Tensor = classifier(layernorm(features.tensor)[:, 0, :])
    return logits


def _classify_first_and_mean(layernorm: nn.Module, classifier: nn.Module, features: Features) -> torch.Tensor:
    hidden = layernorm(features.tensor)
    logits: torch.Tensor = classifier(torch.cat([hidden[:, 0], hidden[:, 1:].mean(dim=1)], dim=1))
    return logits
