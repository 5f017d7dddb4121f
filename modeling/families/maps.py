"""Networks of several levels whose features are maps, (B, channels, height, width). Rows of paths (see `staged`)."""

from __future__ import annotations

from itertools import accumulate
from math import ceil, prod
from operator import mul
from typing import TYPE_CHECKING, Any

from .staged import Levels, StagedFamily, Unit, rounded, uniform

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RegNetFamily(StagedFamily):
    """RegNet, whose stem has half the stride of ResNet's."""

    def stem_of(self, config: Any) -> int:
        return 4 if config.downsample_in_first_stage else 2


class ConvNextV2Family(StagedFamily):
    """ConvNeXt v2."""

    def stem_of(self, config: Any) -> int:
        return int(config.patch_size)


class BitFamily(StagedFamily):
    """BiT: convolutions are dilated where the resolution must not fall below `output_stride`."""

    def levels(self, config: Any) -> Levels:
        widths = [rounded(width * config.width_factor) for width in config.hidden_sizes]
        strides, stride = [], 4
        for level in range(len(widths)):
            stride *= 2 if level > 0 and stride < config.output_stride else 1
            strides.append(stride)
        return uniform(config.depths, widths, strides)


class PoolFormerFamily(StagedFamily):
    """PoolFormer (MetaFormer)."""

    def levels(self, config: Any) -> Levels:
        return uniform(config.depths, config.hidden_sizes, list(accumulate(config.strides, mul)))


class HGNetFamily(StagedFamily):
    """HGNet v2."""

    def levels(self, config: Any) -> Levels:
        steps = zip(config.stage_downsample, config.stage_downsample_strides, strict=True)
        first, *rest = (stride if downsamples else 1 for downsamples, stride in steps)
        strides = list(accumulate([prod(config.stem_strides) * first, *rest], mul))
        return uniform(config.stage_num_blocks, config.stage_out_channels, strides)


class TextNetFamily(StagedFamily):
    """TextNet, any layer of which may have a stride."""

    def levels(self, config: Any) -> Levels:
        stride, levels = config.stem_stride, []
        for width, steps in zip(config.hidden_sizes[1:], config.conv_layer_strides, strict=True):
            strides = list(accumulate([stride, *steps], mul))[1:]
            levels.append([Unit(width, own) for own in strides])
            stride = strides[-1]
        return levels


class MobileNetV1Family(StagedFamily):
    """MobileNet v1: a unit is a convolution of each channel and one over all channels."""

    def levels(self, config: Any) -> Levels:
        levels: list[list[Unit]] = [[]]
        stride, depth = 2, 32
        for number, step in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
            stride *= step
            depth *= 2 if step == 2 or number == 0 else 1
            if step == 2:
                levels.append([])
            levels[-1].append(Unit(max(int(depth * config.depth_multiplier), config.min_depth), stride))
        return levels

    def layer_path(self, config: PreTrainedConfig, unit: int) -> str:
        return self._in_base(f"{self.layer_list}.{2 * unit + 1}")

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        return (self._in_base(f"{self.layer_list}.{2 * unit}"), self.layer_path(config, unit))


class MobileNetV2Family(StagedFamily):
    """MobileNet v2: convolutions are dilated where the resolution must not fall below `output_stride`."""

    def levels(self, config: Any) -> Levels:
        widths = (24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
        steps = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
        levels: list[list[Unit]] = []
        stride = 2
        for width, step in zip(widths, steps, strict=True):
            stride *= 1 if stride == config.output_stride else step
            if step == 2:
                levels.append([])
            own = rounded(round(width * config.depth_multiplier), config.depth_divisible_by, config.min_depth)
            levels[-1].append(Unit(own, stride))
        return levels


class MobileViTFamily(StagedFamily):
    """MobileViT: its transformers mix what comes in with what comes out, so that a level with one is a unit."""

    def levels(self, config: Any) -> Levels:
        return _mobile_vit(config.neck_hidden_sizes[1:6], (1, 3, 1, 1, 1), config.output_stride)

    def layer_path(self, config: PreTrainedConfig, unit: int) -> str:
        level, place = self.level(config, unit)
        return self._in_base(f"{self.layer_list}.{level}{f'.layer.{place}' if level < 2 else ''}")

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        return (self.layer_path(config, unit),)


class MobileViTV2Family(MobileViTFamily):
    """MobileViT v2."""

    def levels(self, config: Any) -> Levels:
        bases = ((64, 16), (128, 8), (256, 8), (384, 8), (512, 8))
        widths = [rounded(width * config.width_multiplier, divisor) for width, divisor in bases]
        return _mobile_vit(widths, (1, 2, 1, 1, 1), config.output_stride)


def _mobile_vit(widths: Any, depths: Any, output_stride: int) -> Levels:
    return uniform(depths, widths, [min(stride, max(output_stride, 8)) for stride in (2, 4, 8, 16, 32)])


class EfficientNetFamily(StagedFamily):
    """EfficientNet."""

    def levels(self, config: Any) -> Levels:
        depths = [ceil(config.depth_coefficient * repeats) for repeats in config.num_block_repeats]
        widths = [rounded(width * config.width_coefficient, config.depth_divisor) for width in config.out_channels]
        return uniform(depths, widths, list(accumulate([2, *config.strides], mul))[1:])


class SwiftFormerFamily(StagedFamily):
    """SwiftFormer: one list has its levels, and between them what leads to the next."""

    def levels(self, config: Any) -> Levels:
        steps = [config.down_stride if self._is_led_to(config, i) else 1 for i in range(1, len(config.depths))]
        return uniform(config.depths, config.embed_dims, list(accumulate([4, *steps], mul)))

    def layer_path(self, config: PreTrainedConfig, unit: int) -> str:
        level, place = self.level(config, unit)
        return self._in_base(f"{self.layer_list}.{self._place(config, level)}.blocks.{place}")

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        opens = place == 0 and level > 0 and self._is_led_to(config, level)
        opening = (self._in_base(f"{self.layer_list}.{self._place(config, level) - 1}"),) if opens else ()
        return (*opening, self.layer_path(config, unit))

    def _is_led_to(self, config: Any, level: int) -> bool:
        """Whether something stands before a level."""
        return bool(config.downsamples[level - 1] or config.embed_dims[level - 1] != config.embed_dims[level])

    def _place(self, config: PreTrainedConfig, level: int) -> int:
        """The place of a level in the list."""
        return level + sum(self._is_led_to(config, number) for number in range(1, level + 1))


class CvtFamily(StagedFamily):
    """CvT, which adds a token for the class within its last level: a level is a unit."""

    def levels(self, config: Any) -> Levels:
        return uniform([1] * len(config.depth), config.embed_dim, list(accumulate(config.patch_stride, mul)))


_LAYERS = "encoder.stages.{level}.layers.{place}"

MAP_FAMILIES = (
    RegNetFamily("regnet", base="regnet", layer_list=_LAYERS, before=("embedder",)),
    BitFamily("bit", base="bit", layer_list=_LAYERS, before=("embedder",), after=("norm",)),
    ConvNextV2Family(
        "convnextv2",
        base="convnextv2",
        layer_list=_LAYERS,
        before=("embeddings",),
        opens=("encoder.stages.{level}.downsampling_layer.0", "encoder.stages.{level}.downsampling_layer.1"),
        after=("layernorm",),
    ),
    PoolFormerFamily(
        "poolformer",
        base="poolformer",
        layer_list="encoder.block.{level}.{place}",
        opens=("encoder.patch_embeddings.{level}",),
        heads=("norm", "classifier"),
        gives_tuples=True,
    ),
    HGNetFamily(
        "hgnet_v2",
        base="",
        layer_list="encoder.stages.{level}.blocks.{place}",
        before=("embedder",),
        opens=("encoder.stages.{level}.downsample",),
        heads=("fc",),
    ),
    TextNetFamily(
        "textnet",
        base="textnet",
        layer_list="encoder.stages.{level}.stage.{place}",
        before=("stem",),
        heads=("fc",),
        channels="stem_num_channels",
    ),
    MobileNetV1Family("mobilenet_v1", base="mobilenet_v1", layer_list="layer", before=("conv_stem",)),
    MobileNetV2Family(
        "mobilenet_v2",
        base="mobilenet_v2",
        layer_list="layer.{unit}",
        before=("conv_stem",),
        after=("conv_1x1",),
    ),
    MobileViTFamily(
        "mobilevit", base="mobilevit", layer_list="encoder.layer", before=("conv_stem",), after=("conv_1x1_exp",)
    ),
    MobileViTV2Family("mobilevitv2", base="mobilevitv2", layer_list="encoder.layer", before=("conv_stem",)),
    EfficientNetFamily(
        "efficientnet",
        base="efficientnet",
        layer_list="encoder.blocks.{unit}",
        before=("embeddings",),
        after=("encoder.top_conv", "encoder.top_bn"),
    ),
    SwiftFormerFamily(
        "swiftformer",
        base="swiftformer",
        layer_list="encoder.network",
        before=("patch_embed",),
        heads=("norm", "head", "dist_head"),
    ),
    CvtFamily(
        "cvt",
        base="cvt",
        layer_list="encoder.stages.{level}",
        heads=("layernorm", "classifier"),
        gives_tuples=True,
    ),
)
