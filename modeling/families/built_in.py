"""The registry with the library's own families in it. To add one, write its file and name it here."""

from __future__ import annotations

from .configuration_vgg import VGGConfig
from .convnext import ConvNextFamily
from .registry import FAMILIES, OWN_CONFIGS, family_of, register_family
from .resnet import ResNetFamily
from .swin import SwinFamily
from .vgg import VGGFamily
from .vit import DeiTFamily, Dinov2Family, ViTFamily

__all__ = ["FAMILIES", "OWN_CONFIGS", "family_of"]

for family in (ViTFamily(), DeiTFamily(), Dinov2Family(), ResNetFamily(), ConvNextFamily(), SwinFamily()):
    register_family(family.model_type, family)
register_family(VGGFamily.model_type, VGGFamily(), config_class=VGGConfig)
