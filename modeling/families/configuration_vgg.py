"""Configuration of VGG with batch normalisation, which the PWL paper uses and transformers lacks."""

# No `from __future__ import annotations`: `@strict` checks the types of fields only where they are not strings.

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class VGGConfig(PreTrainedConfig):
    """A VGG of 3x3 convolutions, each with BatchNorm, and a max pool of 2 after each level.

    Source: Simonyan & Zisserman, arXiv 1409.1556; BatchNorm and one linear head after global average
    pooling as is usual for small images.

    Args:
        num_channels: Channels of the input images.
        hidden_sizes: Channels of each level.
        depths: Convolutions of each level.
        hidden_act: The activation after each BatchNorm.

    Example:

        >>> from pwl_hf.modeling import VGGConfig
        >>> VGGConfig(hidden_sizes=[8, 16], depths=[1, 2]).depths
        [1, 2]
    """

    model_type = "pwl_vgg"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 3, 3, 3)
    hidden_act: str = "relu"

    def validate_levels(self) -> None:
        """Refuse levels that cannot be built."""
        if len(self.hidden_sizes) != len(self.depths) or not self.depths:
            raise ValueError(
                f"hidden_sizes and depths must name the same levels, got {list(self.hidden_sizes)} and "
                f"{list(self.depths)}"
            )
        if min(*self.hidden_sizes, *self.depths, self.num_channels) < 1:
            raise ValueError(
                f"hidden_sizes, depths and num_channels must be positive, got {list(self.hidden_sizes)}, "
                f"{list(self.depths)} and {self.num_channels}"
            )
