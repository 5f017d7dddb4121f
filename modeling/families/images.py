"""Networks that take images and whose layers all see the same patches. Each is a row of paths (see `driven`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .base import PATCHES, Boundary
from .driven import DrivenFamily
from .vit import boundary_of_patches

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from .base import Inputs


@dataclass(frozen=True, eq=False)
class ImageFamily(DrivenFamily):
    """A family of networks that take images.

    Args:
        within: The name of the config, in the networks' config, that describes what sees the images.
        channels: The name of the number of channels in that.
        interpolates: Whether `interpolate_pos_encoding` is something that its networks take.
    """

    heads: tuple[str, ...] = ("classifier",)
    takes: str = "images"
    equal: tuple[str, ...] = ()
    within: str = ""
    channels: str = "num_channels"
    interpolates: bool = False

    def seeing(self, config: PreTrainedConfig) -> Any:
        return getattr(config, self.within) if self.within else config

    def check_config(self, config: PreTrainedConfig) -> None:
        super().check_config(self.seeing(config))

    def input_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        seeing = self.seeing(config)
        return {"num_channels": getattr(seeing, self.channels)} | {name: getattr(seeing, name) for name in self.equal}

    def not_padding(self, config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
        return None


@dataclass(frozen=True, eq=False)
class PatchFamily(ImageFamily):
    """A family of networks whose layers all see the same patches.

    Args:
        special_tokens: How many tokens stand before the patches, registers aside.
        any_size: Whether its networks take images of any size without being asked to.
    """

    special_tokens: int = 1
    any_size: bool = False

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return (self.seeing(config).num_hidden_layers,)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        seeing = self.seeing(config)
        special_tokens = self.special_tokens + getattr(seeing, "num_register_tokens", 0)
        return boundary_of_patches(seeing, special_tokens, any_size=self.any_size)


class Siglip2Family(PatchFamily):
    """SigLIP 2, which takes patches that an image processor has cut, padded to the same number."""

    def input_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        return super().input_settings(config) | {"patch_size": self.seeing(config).patch_size}

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        return Boundary(self.seeing(config).hidden_size, "patches, as many as there are", channels_first=False)

    def not_padding(self, config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
        mask = inputs.get("pixel_attention_mask")
        return mask.bool() if isinstance(mask, torch.Tensor) else None


def _clip(model_type: str, **others: Any) -> dict[str, Any]:
    """What CLIP and kin have in common: a model of images within a model of images and texts."""
    return {
        "model_type": model_type,
        "base": "vision_model",
        "layer_list": "encoder.layers",
        "before": ("embeddings",),
        "after": ("post_layernorm", "head"),
        "within": "vision_config",
        "interpolates": True,
    } | others


_BEIT: dict[str, Any] = {
    "before": ("embeddings",),
    "after": ("layernorm", "pooler"),
    "interpolates": True,
    "any_size": True,
}

PATCH_FAMILIES = (
    PatchFamily("beit", base="beit", layer_list="layers", shared=("shared_position_bias",), **_BEIT),
    PatchFamily(
        "data2vec-vision",
        base="data2vec_vision",
        layer_list="encoder.layer",
        shared=("encoder.relative_position_bias",),
        gives_tuples=True,
        stand_ins={"embeddings": "pair"},
        **_BEIT,
    ),
    PatchFamily(
        "dinov2_with_registers",
        base="dinov2_with_registers",
        layer_list="encoder.layer",
        before=("embeddings",),
        after=("layernorm",),
        any_size=True,
    ),
    PatchFamily(
        "vit_msn", base="vit", layer_list="layers", before=("embeddings",), after=("layernorm",), interpolates=True
    ),
    PatchFamily(
        "ijepa",
        base="ijepa",
        layer_list="layers",
        before=("embeddings",),
        after=("layernorm",),
        interpolates=True,
        special_tokens=0,
    ),
    PatchFamily(**_clip("clip", before=("embeddings", "pre_layrnorm"))),
    PatchFamily(**_clip("metaclip_2", before=("embeddings", "pre_layrnorm"))),
    PatchFamily(**_clip("siglip", special_tokens=0)),
    Siglip2Family(
        **_clip("siglip2", interpolates=False, takes=PATCHES),
        not_exported="it resizes its positions to each image's own rows and columns, which no graph of one shape holds",
    ),
)
