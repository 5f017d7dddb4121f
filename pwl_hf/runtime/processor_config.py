"""What a `preprocessor_config.json` says, as far as pixels depend on it, in the one form that preprocessing runs.

Each type of transformers' image processors has defaults for what the file lacks, and a few have a way of their own to
choose sizes; all of that is resolved here. A field that is null is off, as in transformers: not at its default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Size = Mapping[str, int]
# Mean and standard deviation to subtract and divide by: one number, or one a channel.
Normalization = tuple[float | tuple[float, ...], float | tuple[float, ...]]

# Of a side: thrice the largest that networks of these types are published for.
MAX_EDGE = 4096

_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_BILINEAR, _BICUBIC = 2, 3
_RESAMPLING = range(6)


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _shortest(edge: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "default_to_square": False}


def _cropped(edge: int) -> dict[str, Any]:
    return {"do_center_crop": True, "crop_size": _square(edge)}


# What all types have, and a file may change.
_COMMON: Mapping[str, Any] = {
    "do_convert_rgb": None,
    "do_resize": True,
    "size": _square(224),
    "default_to_square": True,
    "resample": _BICUBIC,
    "do_center_crop": None,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **_HALVES,
}
_CLIP = {"do_convert_rgb": True, **_shortest(224), **_cropped(224), **_OPENAI}

# The types, each with its defaults where they are not the common ones; a field that only some have is known to those.
TYPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "BeitImageProcessor": {"do_center_crop": False, "crop_size": _square(224)},
        "BitImageProcessor": _CLIP,
        "BlipImageProcessor": {"do_convert_rgb": True, "size": _square(384), **_OPENAI},
        "CLIPImageProcessor": _CLIP,
        "ChineseCLIPImageProcessor": _CLIP,
        "ConvNextImageProcessor": {**_shortest(384), "crop_pct": 224 / 256},
        "DeiTImageProcessor": {"size": _square(256), **_cropped(224)},
        "EfficientNetImageProcessor": {
            "size": _square(346),
            "do_center_crop": False,
            "crop_size": _square(289),
            "rescale_offset": False,
            "include_top": True,
        },
        "LevitImageProcessor": {**_shortest(224), **_cropped(224), **_IMAGENET},
        "MobileNetV1ImageProcessor": {**_shortest(256), **_cropped(224), "resample": _BILINEAR},
        "MobileNetV2ImageProcessor": {**_shortest(256), **_cropped(224), "resample": _BILINEAR},
        "PoolFormerImageProcessor": {**_shortest(224), **_cropped(224), **_IMAGENET, "crop_pct": 0.9},
        "PvtImageProcessor": _IMAGENET,
        "SiglipImageProcessor": {"do_convert_rgb": True, "default_to_square": False},
        "ViTImageProcessor": {"resample": _BILINEAR},
    }
)

# Written by transformers, and without a say in the pixels of an image; `pad_size` has none unless `do_pad` is true.
_OF_NO_EFFECT = {
    "_valid_processor_keys",
    "auto_map",
    "device",
    "disable_grouping",
    "do_reduce_labels",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "pad_size",
    "processor_class",
    "reduce_labels",
    "return_tensors",
}


@dataclass(frozen=True)
class Settings:
    """The steps that pixels go through, in this order; what is None or empty is left out.

    Args:
        to_rgb: Whether images become RGB, what is transparent over white.
        size: What an image is resized to: `height` and `width`; `shortest_edge`, alone or with `longest_edge`; or
            `max_height` and `max_width`. Pixels.
        resample: Pillow's number of the filter.
        crops: (height, width) of each crop from the centre, in pixels; smaller images are padded with 0.
        scale: What the values are multiplied by.
        offset: Whether 1 is subtracted then.
        normalizations: What is subtracted and divided by, one after the other.
    """

    to_rgb: bool
    size: Size | None
    resample: int
    crops: tuple[tuple[int, int], ...]
    scale: float | None
    offset: bool
    normalizations: tuple[Normalization, ...]


def read_settings(config: Mapping[str, Any], num_channels: int) -> Settings:
    """The settings of an image processor.

    Args:
        config: What its `preprocessor_config.json` says.
        num_channels: The network's input channels.

    Raises:
        ValueError: If it is of a type that is not among `TYPES`, has a field that its type does not know, or a value
            that is none, is larger than any, or does not fit the channels.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"an image processor's config must be an object of fields, got {type(config).__name__}")
    kind = _type_of(config)
    # 1. The type's defaults under what the file says.
    fields = _Fields({**_COMMON, **TYPES[kind], **_known(config, kind)}, kind, num_channels)
    to_rgb = fields.switch("do_convert_rgb")
    if to_rgb and num_channels != 3:
        raise fields.refused(
            "do_convert_rgb", f"the network takes images of {num_channels} channel(s): set it to false"
        )
    # 2. Where to resize and crop; a ConvNeXt's crop belongs to its resize.
    size: Size | None = None
    crops: list[tuple[int, int]] = []
    if fields.switch("do_resize"):
        size, crops = _resize(fields)
    if fields.switch("do_center_crop"):
        crop = fields.size("crop_size", square=True)
        if set(crop) != {"height", "width"}:
            raise fields.refused("crop_size", "a crop needs height and width")
        crops.append((crop["height"], crop["width"]))
    # 3. What becomes of the values.
    normalizations: list[Normalization] = []
    if fields.switch("do_normalize"):
        normalizations.append((fields.per_channel("image_mean"), fields.divisor("image_std")))
    if "include_top" in fields.values and fields.switch("include_top"):
        normalizations.append((0, fields.divisor("image_std")))
    do_rescale = fields.switch("do_rescale")
    return Settings(
        to_rgb=to_rgb,
        size=size,
        resample=fields.resampling() if size is not None else _BILINEAR,
        crops=tuple(crops),
        scale=fields.positive("rescale_factor") if do_rescale else None,
        offset=do_rescale and "rescale_offset" in fields.values and fields.switch("rescale_offset"),
        normalizations=tuple(normalizations),
    )


def _type_of(config: Mapping[str, Any]) -> str:
    """The type without the suffix of what it is computed with."""
    written, code = config.get("image_processor_type"), config.get("auto_map")
    # Code of the repository's own takes the place of the older name.
    if written is None and not (isinstance(code, Mapping) and "AutoImageProcessor" in code):
        written = config.get("feature_extractor_type")
        if isinstance(written, str):
            written = written.replace("FeatureExtractor", "ImageProcessor")
    name = written.removesuffix("Fast").removesuffix("Pil") if isinstance(written, str) else None
    if name is None or name not in TYPES:
        raise ValueError(
            f"preprocessor_config.json has image_processor_type {written!r:.100}, and images are prepared here as by "
            f"one of {', '.join(TYPES)}: save one of these with the model, or run it with transformers"
        )
    return name


def _known(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields that say something about pixels; one that is neither known nor off is refused."""
    known = {**_COMMON, **TYPES[kind]}
    for name, value in config.items():
        is_off = value is None or value is False
        # Both are always channels first here.
        if name in known or name in _OF_NO_EFFECT or is_off or (name, value) == ("data_format", "channels_first"):
            continue
        raise ValueError(
            f"preprocessor_config.json has {name!r:.100}: {value!r:.100}, which images of a {kind} are not prepared "
            "by here: remove it if it changes no pixels, or run the model with transformers"
        )
    return {name: value for name, value in config.items() if name in known}


def _resize(fields: _Fields) -> tuple[Size, list[tuple[int, int]]]:
    """What to resize to, and the crops that go with it, in each type's own way."""
    size = fields.size("size", square=bool(fields.switch("default_to_square")))
    edge = size.get("shortest_edge")
    if fields.kind == "ConvNextImageProcessor":
        if edge is None:
            raise fields.refused("size", "give shortest_edge")
        # Published networks of 384 pixels and more see the whole image, stretched.
        if edge >= 384:
            return _square(edge), []
        return {"shortest_edge": fields.enlarged(edge)}, [(edge, edge)]
    if fields.kind == "LevitImageProcessor" and edge is not None:
        return {"shortest_edge": int((256 / 224) * edge)}, []
    if fields.kind == "PoolFormerImageProcessor" and fields.values["crop_pct"] is not None:
        if edge is not None:
            return {"shortest_edge": fields.enlarged(edge)}, []
        if set(size) != {"height", "width"}:
            raise fields.refused("size", "give shortest_edge, or height and width")
        height, width = fields.enlarged(size["height"]), fields.enlarged(size["width"])
        return (
            {"shortest_edge": height} if size["height"] == size["width"] else {"height": height, "width": width}
        ), []
    return size, []


_KEYS = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})


@dataclass(frozen=True)
class _Fields:
    """The fields of one file, by what they must be."""

    values: Mapping[str, Any]
    kind: str
    num_channels: int

    def refused(self, name: str, reason: str) -> ValueError:
        return ValueError(f"preprocessor_config.json has {name} {self.values[name]!r:.100}: {reason}")

    def switch(self, name: str) -> bool:
        value = self.values[name]
        if value is not None and not isinstance(value, bool):
            raise self.refused(name, "it must be true or false")
        return bool(value)

    def size(self, name: str, *, square: bool) -> dict[str, int]:
        value = self.values[name]
        if isinstance(value, list | tuple) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        elif not isinstance(value, Mapping):
            value = _square(value) if square else {"shortest_edge": value}
        if set(value) not in _KEYS:
            keys = "; ".join(" and ".join(sorted(keys)) for keys in _KEYS)
            raise self.refused(name, f"it must be a number of pixels, or have {keys}")
        for edge in value.values():
            self._check_edge(name, edge)
        return dict(value)

    def _check_edge(self, name: str, edge: Any) -> None:
        if isinstance(edge, bool) or not isinstance(edge, int) or not 0 < edge <= MAX_EDGE:
            raise self.refused(name, f"a side must be a whole number of pixels from 1 to {MAX_EDGE}")

    def enlarged(self, edge: int) -> int:
        """The side that `edge` is `crop_pct` of."""
        share = self.positive("crop_pct")
        if not 1 <= edge / share <= MAX_EDGE:
            raise self.refused("crop_pct", f"with {edge} pixels, it gives a side that is not from 1 to {MAX_EDGE}")
        return int(edge / share)

    def resampling(self) -> int:
        value = self.values["resample"]
        if isinstance(value, bool) or not isinstance(value, int) or value not in _RESAMPLING:
            raise self.refused("resample", f"it must be Pillow's number of a filter, from 0 to {_RESAMPLING[-1]}")
        return int(value)

    def positive(self, name: str) -> float:
        value = self.values[name]
        if not _is_number(value) or value <= 0:
            raise self.refused(name, "it must be a number above 0")
        return float(value)

    def per_channel(self, name: str) -> float | tuple[float, ...]:
        value = self.values[name]
        numbers = value if isinstance(value, list | tuple) else [value]
        if not all(map(_is_number, numbers)):
            raise self.refused(name, "it must be a number, or a list of one for each channel")
        if isinstance(value, list | tuple):
            if len(value) != self.num_channels:
                raise self.refused(
                    name, f"the network takes images of {self.num_channels} channel(s): give so many values"
                )
            return tuple(map(float, value))
        return float(value)

    def divisor(self, name: str) -> float | tuple[float, ...]:
        value = self.per_channel(name)
        if any(number <= 0 for number in (value if isinstance(value, tuple) else (value,))):
            raise self.refused(name, "pixels are divided by it: it must be above 0")
        return value


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Whole numbers too large for a float are none either.
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
