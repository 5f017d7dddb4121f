"""Networks of several levels whose features are tokens of a grid, (B, tokens, width). Rows of paths (see `staged`)."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any

from .base import Boundary, pair
from .ports import Window
from .staged import Levels, StagedFamily, Unit, square, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_IN_ROWS = "tokens in rows"


class SwinV2Family(StagedFamily):
    """As Swin v2: windows over a grid, and widths that double."""

    def levels(self, config: Any) -> Levels:
        height, width = pair(config.patch_size)
        if height != width:
            raise ValueError(f"patch_size {list(config.patch_size)} is not square")
        widths = [config.embed_dim * 2**level for level in range(len(config.depths))]
        return uniform(config.depths, widths, [height * 2**level for level in range(len(config.depths))])

    def window(self, config: Any, level: int) -> Window:
        return square(config.patch_size, config.patch_size, 0, config.patch_size)

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int] | None:
        return pair(config.image_size) if config.use_absolute_embeddings else None


class FocalNetFamily(SwinV2Family):
    """FocalNet, whose patches may overlap."""

    def levels(self, config: Any) -> Levels:
        levels = super().levels(config)
        if not config.use_conv_embed:
            return levels
        return [[Unit(unit.width, 4 * 2**number) for unit in level] for number, level in enumerate(levels)]

    def window(self, config: Any, level: int) -> Window:
        if level == 0:
            return square(7, 4, 2, config.patch_size) if config.use_conv_embed else super().window(config, level)
        return square(3, 2, 1, 2) if config.use_conv_embed else square(2, 2, 0, 2)

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int] | None:
        return None


class PvtV2Family(StagedFamily):
    """PVT v2 and SegFormer: overlapping patches of the map before."""

    def levels(self, config: Any) -> Levels:
        return uniform(config.depths, config.hidden_sizes, list(accumulate(config.strides, mul)))

    def window(self, config: Any, level: int) -> Window:
        size = config.patch_sizes[level]
        return square(size, config.strides[level], size // 2)


class PvtFamily(StagedFamily):
    """PVT, with a token for the class in its last level."""

    def levels(self, config: Any) -> Levels:
        return uniform(config.depths, config.hidden_sizes, list(accumulate(config.patch_sizes, mul)))

    def window(self, config: Any, level: int) -> Window:
        return square(config.strides[level], config.patch_sizes[level])

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        found = super().boundary(config, units)
        if self.level(config, units - 1)[0] < len(config.depths) - 1:
            return found
        return replace(found, geometry=f"{found.geometry} behind one for the class")


class HieraFamily(StagedFamily):
    """Hiera, whose tokens lie in the order in which they are pooled."""

    def levels(self, config: Any) -> Levels:
        if len({*config.patch_stride}) > 1 or len({*config.query_stride}) > 1:
            raise ValueError(
                f"patch_stride {list(config.patch_stride)} and query_stride {list(config.query_stride)} are not square"
            )
        widths = [int(config.embed_dim * config.embed_dim_multiplier**level) for level in range(len(config.depths))]
        steps = [config.query_stride[0] if level <= config.num_query_pool else 1 for level in range(1, len(widths))]
        return uniform(config.depths, widths, list(accumulate([config.patch_stride[0], *steps], mul)))

    def window(self, config: Any, level: int) -> Window:
        return square(config.patch_size, config.patch_stride, config.patch_padding)

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int] | None:
        return pair(config.image_size)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        found, pooled = super().boundary(config, units), len(config.depths) - 1
        return replace(found, geometry=f"{found.geometry} unrolled {pooled} times by {config.query_stride[0]}")


class LevitFamily(StagedFamily):
    """LeViT: attentions and feed-forward parts are units; the last ones of a level lead to the next."""

    def levels(self, config: Any) -> Levels:
        levels, stride = [], config.stride**4
        for number, (depth, ratio) in enumerate(zip(config.depths, config.mlp_ratio, strict=True)):
            parts = depth * (2 if ratio > 0 else 1)
            level = [Unit(config.hidden_sizes[number], stride)] * parts
            # Its kind, three sizes of its attention, the ratio of its feed-forward part, and its stride.
            step: list[Any] = config.down_ops[number] if number < len(config.down_ops) else [""]
            if step[0] == "Subsample":
                stride *= step[5]
                level += [Unit(config.hidden_sizes[number + 1], stride)] * (2 if step[4] > 0 else 1)
            levels.append(level)
        return levels

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int] | None:
        return pair(config.image_size)


_SWIN: dict[str, Any] = {
    "layer_list": "encoder.layers.{level}.blocks.{place}",
    "before": ("embeddings",),
    "opens": ("encoder.layers.{previous}.downsample",),
    "gives": {"embeddings": "grid"},
    "tokens": _IN_ROWS,
    "gives_tuples": True,
    "interpolates": True,
}

GRID_FAMILIES = (
    SwinV2Family("swinv2", base="swinv2", after=("layernorm",), **_SWIN),
    SwinV2Family("donut-swin", base="donut", **_SWIN),
    FocalNetFamily(
        "focalnet",
        base="focalnet",
        layer_list="encoder.stages.{level}.layers.{place}",
        before=("embeddings",),
        opens=("encoder.stages.{previous}.downsample",),
        after=("layernorm",),
        gives={"embeddings": "grid", "encoder.stages.{previous}.downsample": "grid"},
        tokens=_IN_ROWS,
    ),
    PvtFamily(
        "pvt",
        base="pvt",
        layer_list="encoder.block.{level}.{place}",
        opens=("encoder.patch_embeddings.{level}",),
        after=("encoder.layer_norm",),
        gives={"encoder.patch_embeddings.{level}": "sides"},
        tokens=_IN_ROWS,
        gives_tuples=True,
    ),
    PvtV2Family(
        "pvt_v2",
        base="pvt_v2",
        layer_list="encoder.layers.{level}.blocks.{place}",
        opens=("encoder.layers.{level}.patch_embedding",),
        closes=("encoder.layers.{level}.layer_norm",),
        gives={"encoder.layers.{level}.patch_embedding": "sides"},
        tokens=_IN_ROWS,
        gives_tuples=True,
    ),
    PvtV2Family(
        "segformer",
        base="segformer",
        layer_list="stages.{level}.blocks.{place}",
        opens=("stages.{level}.patch_embeddings",),
        closes=("stages.{level}.layer_norm",),
        gives={"stages.{level}.patch_embeddings": "sides"},
        tokens=_IN_ROWS,
    ),
    HieraFamily(
        "hiera",
        base="hiera",
        layer_list="encoder.stages.{level}.layers.{place}",
        before=("embeddings",),
        after=("pooler",),
        gives={"embeddings": "no masks"},
        tokens="tokens",
        gives_tuples=True,
        interpolates=True,
    ),
    LevitFamily(
        "levit",
        base="levit",
        layer_list="encoder.stages.{level}.layers.{place}",
        before=("patch_embeddings",),
        tokens=_IN_ROWS,
    ),
)
