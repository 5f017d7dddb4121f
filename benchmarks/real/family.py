"""How the ResNets for CIFAR are cut: a family of a user's own, registered once this module is imported.

accelerate launch training/train.py --family_module benchmarks.real.family ...
pwl-hf --family-module benchmarks.real.family evaluate ...
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.real.network import CifarResNetConfig, padding_before, pooled
from pwl_hf import Boundary, Family, Features, register_family

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from pwl_hf.modeling.families.base import GetModule, Inputs


class CifarResNetFamily(Family):
    """A level a resolution, a unit a basic layer."""

    model_type = CifarResNetConfig.model_type

    def model_class(self) -> type[PreTrainedModel]:
        from benchmarks.real.network import CifarResNetForImageClassification

        return CifarResNetForImageClassification

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return tuple(config.depths)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        level, _ = self.level(config, units - 1)
        return Boundary(config.hidden_sizes[level], f"1/{2**level} of the input's resolution", channels_first=True)

    def carried(self, config: PreTrainedConfig, level: int) -> int | None:
        return padding_before(config.hidden_sizes[level - 1], config.hidden_sizes[level])

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("embedder",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        return (f"levels.{level}.layers.{place}",)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("classifier",)

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed, get("embedder"))

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        return partial(_run_layer, get(*self.unit_paths(config, unit)))

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify, get("classifier"))


def _embed(embedder: nn.Module, inputs: Inputs) -> Features:
    return Features(embedder(inputs["pixel_values"]))


def _run_layer(layer: nn.Module, features: Features) -> Features:
    return Features(layer(features.tensor))


def _classify(classifier: nn.Module, features: Features) -> torch.Tensor:
    logits: torch.Tensor = classifier(pooled(features.tensor))
    return logits


register_family(CifarResNetFamily.model_type, CifarResNetFamily(), config_class=CifarResNetConfig)
