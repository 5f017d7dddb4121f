"""From images to what a model takes, in the one way of everything here: that of transformers' pipelines.

Importing it imports neither torch nor transformers: the runtime turns images upright as training does.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor

# What an image becomes for a network of so many input channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# What a model of patches takes besides them.
OF_PATCHES = ("pixel_attention_mask", "spatial_shapes")


def channels_of(config: Any) -> int:
    """The input channels of a network, by its config; 3 if that does not say, as a family of one's own need not."""
    from pwl_hf.modeling.families.built_in import FAMILIES

    family = FAMILIES.get(config.model_type)
    settings = family.input_settings(config) if family is not None else {}
    channels: int = settings.get("num_channels", getattr(config, "num_channels", 3))
    return channels


def check_channels(num_channels: int) -> None:
    """Refuse networks that images cannot be made for; tensors may be given to them all the same.

    Args:
        num_channels: The network's input channels.

    Raises:
        ValueError: With the numbers of channels that images can have.
    """
    if num_channels not in _MODES:
        kinds = ", ".join(f"{count} ({mode})" for count, mode in _MODES.items())
        raise ValueError(
            f"the network takes images of {num_channels} channels (num_channels), and images become one of {kinds}: "
            "give it tensors of your own"
        )


def upright(image: Image.Image, num_channels: int = 3) -> Image.Image:
    """An image as a network sees it: turned as its EXIF orientation says, with the network's channels.

    Of several frames the first is taken. What RGB makes of palettes, transparency, CMYK and 16 bits is what Pillow's
    `convert` does, as in transformers' `load_image`.

    Args:
        image: Any image.
        num_channels: The network's input channels: 1 becomes grey, 3 RGB, 4 RGBA.

    Raises:
        ValueError: For another number of channels.
        OSError: If the image cannot be decoded; Pillow's decoders may raise others too.
    """
    check_channels(num_channels)
    turned = ImageOps.exif_transpose(image)
    # Grey by way of RGB: of 16 bits and palettes, the same pixels as a network of three channels gets.
    return turned.convert("RGB").convert("L") if num_channels == 1 else turned.convert(_MODES[num_channels])


def to_tensor(images: Sequence[Image.Image], processor: BaseImageProcessor, num_channels: int = 3) -> torch.Tensor:
    """Images as most models take them, (B, C, H, W) float: training and use share the one processor.

    Args:
        images: Any images.
        processor: The model's image processor.
        num_channels: The model's input channels C.

    Raises:
        ValueError: If the processor does not make images of so many channels, or makes patches of them.
    """
    made = process([upright(image, num_channels) for image in images], processor, num_channels)
    if len(made) > 1:
        raise ValueError(
            f"the image processor ({type(processor).__name__}) makes {', '.join(made)} of images, and here it must be "
            "images (B, C, H, W) alone"
        )
    return made["pixel_values"]


def process(
    images: Sequence[Image.Image], processor: BaseImageProcessor, num_channels: int = 3
) -> dict[str, torch.Tensor]:
    """Images as a model takes them, by name, of images that `upright` has made.

    Args:
        images: The images.
        processor: The model's image processor.
        num_channels: The model's input channels C.

    Returns:
        `pixel_values` (B, C, H, W), floating; of a processor that cuts images into patches, as SigLIP 2's, (B, patches,
        C x height x width of a patch), with `pixel_attention_mask` (B, patches) and `spatial_shapes` (B, 2).

    Raises:
        ValueError: If the processor does not make images of so many channels, or something else than images.
    """
    try:
        made = processor(images=list(images), return_tensors="pt")
    except ValueError as error:
        if num_channels == 3:
            raise
        raise _unfit(processor, num_channels, str(error)) from error
    pixel_values: torch.Tensor = made["pixel_values"]
    if all(name in made for name in OF_PATCHES) and pixel_values.ndim == 3:
        channels = pixel_values.shape[2] // processor.patch_size**2  # type: ignore[attr-defined]
    elif pixel_values.ndim == 4:
        channels = pixel_values.shape[1]
    else:
        raise ValueError(
            f"the image processor ({type(processor).__name__}) makes {', '.join(made)} of shape "
            f"{list(pixel_values.shape)}, and data sets are prepared as images (B, C, H, W), or as patches with "
            f"{' and '.join(OF_PATCHES)}: call the model, or a pipeline, with what it makes"
        )
    if channels != num_channels:
        raise _unfit(processor, num_channels, f"it makes {channels}")
    of_patches = OF_PATCHES if pixel_values.ndim == 3 else ()
    return {"pixel_values": pixel_values, **{name: made[name] for name in of_patches}}


def _unfit(processor: BaseImageProcessor, num_channels: int, reason: str) -> ValueError:
    return ValueError(
        f"the image processor ({type(processor).__name__}) cannot prepare images of {num_channels} channel(s): "
        f"{reason}; give it do_convert_rgb=False, and image_mean and image_std of {num_channels} value(s)"
    )
