"""ResNet: a level a stage, a unit a residual layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .base import Boundary, Family, Features, GetModule, Inputs, pixels_of, transformers_class

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


# A convolution and a max pool, each of stride 2, stand before the first unit.
_EMBEDDER_STRIDE = 4


class ResNetFamily(Family):
    """ResNet with basic or bottleneck layers (arXiv 1512.03385)."""

    model_type = "resnet"
    takes = "images"

    def model_class(self) -> type[PreTrainedModel]:
        return transformers_class("ResNetForImageClassification")

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return tuple(config.depths)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        level, _ = self.level(config, units - 1)
        stride = _EMBEDDER_STRIDE * 2**level * (2 if config.downsample_in_first_stage else 1)
        return Boundary(config.hidden_sizes[level], f"1/{stride} of the input's resolution", channels_first=True)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("resnet.embedder",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        return (f"resnet.encoder.stages.{level}.layers.{place}",)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("classifier",)

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed, get("resnet.embedder"))

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        return partial(_run_layer, get(*self.unit_paths(config, unit)))

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify, get("resnet.pooler"), get("classifier"))


def _embed(embedder: nn.Module, inputs: Inputs) -> Features:
    return Features(embedder(pixels_of(inputs, embedder)))


def _run_layer(layer: nn.Module, features: Features) -> Features:
    return Features(layer(features.tensor))


def _classify(pooler: nn.Module, classifier: nn.Module, features: Features) -> torch.Tensor:
    logits: torch.Tensor = classifier(pooler(features.tensor))
    return logits
