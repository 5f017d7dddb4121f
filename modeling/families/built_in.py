"""The registry with the library's own families in it. To add one, write its row or its file."""

from __future__ import annotations

from .audio import AUDIO_FAMILIES
from .configuration_vgg import VGGConfig
from .convnext import ConvNextFamily
from .grids import GRID_FAMILIES
from .images import PATCH_FAMILIES
from .maps import MAP_FAMILIES
from .registry import FAMILIES, OWN_CONFIGS, family_of, most_tokens, register_family
from .resnet import ResNetFamily
from .swin import SwinFamily
from .text import TEXT_FAMILIES
from .vgg import VGGFamily
from .vit import DeiTFamily, Dinov2Family, ViTFamily

__all__ = ["FAMILIES", "OWN_CONFIGS", "family_of", "most_tokens"]

_BY_HAND = (ViTFamily(), DeiTFamily(), Dinov2Family(), ResNetFamily(), ConvNextFamily(), SwinFamily())
IMAGE_FAMILIES = (*_BY_HAND, *PATCH_FAMILIES, *MAP_FAMILIES, *GRID_FAMILIES)
for family in (*IMAGE_FAMILIES, *TEXT_FAMILIES, *AUDIO_FAMILIES):
    register_family(family.model_type, family)
register_family(VGGFamily.model_type, VGGFamily(), config_class=VGGConfig)
