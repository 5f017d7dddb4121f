"""The families that can be cut, by `model_type`. To add one, write its file and name it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .configuration_vgg import VGGConfig
from .family import Family
from .family_convnext import ConvNextFamily
from .family_resnet import ResNetFamily
from .family_swin import SwinFamily
from .family_vgg import VGGFamily
from .family_vit import DeiTFamily, Dinov2Family, ViTFamily

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        ViTFamily(),
        DeiTFamily(),
        Dinov2Family(),
        ResNetFamily(),
        ConvNextFamily(),
        SwinFamily(),
        VGGFamily(),
    )
}

# Config classes that transformers' AutoConfig does not know, by `model_type`.
OWN_CONFIGS: dict[str, type[PreTrainedConfig]] = {VGGConfig.model_type: VGGConfig}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a network's config.

    Raises:
        ValueError: If its `model_type` cannot be cut, with those that can.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"model_type {config.model_type!r} cannot be cut into blocks; the supported ones are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[config.model_type]
