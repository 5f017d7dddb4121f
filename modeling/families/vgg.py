"""VGG: a level a resolution, a unit a convolution with its BatchNorm; a pool ends each level."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .base import Boundary, Family, Features, GetModule, Inputs, pixels_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


class VGGFamily(Family):
    """VGG with BatchNorm, this library's own (see `modeling_vgg`)."""

    model_type = "pwl_vgg"
    code_module = "modeling_vgg"

    def model_class(self) -> type[PreTrainedModel]:
        from .modeling_vgg import VGGForImageClassification

        return VGGForImageClassification

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return tuple(config.depths)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        level, place = self.level(config, units - 1)
        stride = 2 ** (level + (place == config.depths[level] - 1))
        return Boundary(config.hidden_sizes[level], f"1/{stride} of the input's resolution", channels_first=True)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ()

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        return (f"vgg.layers.{unit}",)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("classifier",)

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed, get("vgg.layers.0"))

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        return partial(_run_layer, get(f"vgg.layers.{unit}"))

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify, get("vgg.pooler"), get("classifier"))


def _embed(first_layer: nn.Module, inputs: Inputs) -> Features:
    # VGG has no embedder: its first unit takes the pixels.
    return Features(pixels_of(inputs, first_layer))


def _run_layer(layer: nn.Module, features: Features) -> Features:
    return Features(layer(features.tensor))


def _classify(pooler: nn.Module, classifier: nn.Module, features: Features) -> torch.Tensor:
    logits: torch.Tensor = classifier(pooler(features.tensor).flatten(1))
    return logits
