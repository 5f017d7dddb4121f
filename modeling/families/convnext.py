"""ConvNeXt: a level a stage, a unit a residual layer; downsampling belongs to a level's first unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .base import Boundary, Family, Features, GetModule, Inputs, pixels_of, transformers_class

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


class ConvNextFamily(Family):
    """ConvNeXt (arXiv 2201.03545)."""

    model_type = "convnext"
    takes = "images"

    def model_class(self) -> type[PreTrainedModel]:
        return transformers_class("ConvNextForImageClassification")

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return tuple(config.depths)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        level, _ = self.level(config, units - 1)
        stride = config.patch_size * 2**level
        return Boundary(config.hidden_sizes[level], f"1/{stride} of the input's resolution", channels_first=True)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("convnext.embeddings",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        stage = f"convnext.encoder.stages.{level}"
        downsampling = (f"{stage}.downsampling_layer",) if place == 0 and level > 0 else ()
        return (*downsampling, f"{stage}.layers.{place}")

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("convnext.layernorm", "classifier")

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed, get("convnext.embeddings"))

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        *downsampling, layer = (get(path) for path in self.unit_paths(config, unit))
        # `downsampling_layer` is a list of modules, not callable itself.
        modules: list[nn.Module] = [module for layers in downsampling for module in layers.children()]
        return partial(_run_modules, (*modules, layer))

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify, get("convnext.layernorm"), get("classifier"))


def _embed(embeddings: nn.Module, inputs: Inputs) -> Features:
    return Features(embeddings(pixels_of(inputs, embeddings)))


def _run_modules(modules: tuple[nn.Module, ...], features: Features) -> Features:
    hidden = features.tensor
    for module in modules:
        hidden = module(hidden)
    return Features(hidden)


def _classify(layernorm: nn.Module, classifier: nn.Module, features: Features) -> torch.Tensor:
    logits: torch.Tensor = classifier(layernorm(features.tensor.mean([-2, -1])))
    return logits
