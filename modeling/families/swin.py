"""Swin: a level a stage, a unit a layer; patch merging belongs to a level's last unit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .base import Boundary, Family, Features, GetModule, Inputs, pair, pixels_of, transformers_class

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel


class SwinFamily(Family):
    """Swin transformer (arXiv 2103.14030)."""

    model_type = "swin"
    interpolates = True
    takes = "images"

    def model_class(self) -> type[PreTrainedModel]:
        return transformers_class("SwinForImageClassification")

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return tuple(config.depths)

    def check_config(self, config: PreTrainedConfig) -> None:
        super().check_config(config)
        if len(config.num_heads) != len(config.depths):
            raise ValueError(f"num_heads {list(config.num_heads)} and depths {list(config.depths)} name other levels")
        for level, heads in enumerate(config.num_heads):
            if (width := config.embed_dim * 2**level) % heads:
                raise ValueError(f"the width {width} of level {level} cannot be divided among num_heads {heads}")

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        level, place = self.level(config, units - 1)
        # After patch merging the features are already those of the next level.
        level += self._merges(config, level, place)
        geometry = f"1/{config.patch_size * 2**level} of an image of {config.image_size} pixels"
        height, width = pair(config.image_size)
        patch_height, patch_width = pair(config.patch_size)
        grid = -(-height // patch_height), -(-width // patch_width)
        # Patch merging pads an odd side.
        for _ in range(level):
            grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
        return Boundary(config.embed_dim * 2**level, geometry, channels_first=False, grid=grid)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("swin.embeddings",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        stage = f"swin.encoder.layers.{level}"
        merging = (f"{stage}.downsample",) if self._merges(config, level, place) else ()
        return (f"{stage}.blocks.{place}", *merging)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("swin.layernorm", "classifier")

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        return partial(_embed, get("swin.embeddings"))

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        layer, *merging = (get(path) for path in self.unit_paths(config, unit))
        return partial(_run_layer, layer, merging[0] if merging else None)

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        return partial(_classify, get("swin.layernorm"), get("swin.pooler"), get("classifier"))

    def _merges(self, config: PreTrainedConfig, level: int, place: int) -> bool:
        depths = self.depths(config)
        return place == depths[level] - 1 and level < len(depths) - 1


def _embed(embeddings: nn.Module, inputs: Inputs) -> Features:
    interpolate = bool(inputs.get("interpolate_pos_encoding"))
    tensor, grid = embeddings(pixels_of(inputs, embeddings), interpolate_pos_encoding=interpolate)
    return Features(tensor, grid)


def _run_layer(layer: nn.Module, merging: nn.Module | None, features: Features) -> Features:
    tensor, grid = features
    if grid is None:
        raise RuntimeError("a Swin layer was called without a token grid")
    tensor, _ = layer(tensor, grid)
    if merging is not None:
        tensor = merging(tensor, grid)
        grid = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    return Features(tensor, grid)


def _classify(layernorm: nn.Module, pooler: nn.Module, classifier: nn.Module, features: Features) -> torch.Tensor:
    pooled = pooler(layernorm(features.tensor).transpose(1, 2)).flatten(1)
    logits: torch.Tensor = classifier(pooled)
    return logits
