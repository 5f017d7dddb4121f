"""The images that a caller may give, each as Pillow's or as an array with its channels first.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pwl_hf.data.processing import upright
from pwl_hf.modeling.errors import InputError
from pwl_hf.runtime.paths import path_of

Picture = Image.Image | NDArray[Any]
ImageInput = Picture | str | os.PathLike[str]
Images = ImageInput | Sequence[ImageInput]

_KINDS = "PIL images, numpy arrays or paths of files"
# As transformers tells the channels of an array from its rows.
_CHANNELS = (1, 3, 4)


def is_one(images: Images) -> bool:
    """Whether this is a single image, rather than several: a sequence, or an array of four dimensions."""
    return isinstance(images, Image.Image | str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim < 4)


def read_images(images: Images, num_channels: int) -> Iterator[tuple[str, Picture]]:
    """Each image with what errors call it, as the network's channels want it; one is decoded at a time.

    PIL images and files are turned and converted by `pwl_hf.data.processing.upright`. Of an array the channels are the
    first dimension if it is 1, 3 or 4, otherwise the last, as in transformers; (H, W) is one channel.

    Args:
        images: One image or several: see `Images`. An array of four dimensions is a batch.
        num_channels: The network's input channels.

    Returns:
        PIL images in the mode of so many channels, and arrays (C, H, W) of whole or floating numbers.

    Raises:
        InputError: If there is none, one is of another kind, has no pixels, or cannot be read: named by its number from
            0, and its path.
    """
    if is_one(images):
        yield _read(images, "the image", num_channels)
        return
    if isinstance(images, bytes | bytearray | memoryview) or not isinstance(images, Sequence | np.ndarray):
        raise InputError(f"images must be {_KINDS}, one or a sequence, got {type(images).__name__}")
    if isinstance(images, np.ndarray) and images.ndim > 4:
        raise InputError(f"an array of images must be (B, C, H, W) or (B, H, W, C), got the shape {images.shape}")
    if len(images) == 0:
        raise InputError("there are no images: give at least one")
    for number, image in enumerate(images):
        yield _read(image, f"image {number}", num_channels)


def _read(image: Any, name: str, num_channels: int) -> tuple[str, Picture]:
    if isinstance(image, Image.Image):
        return name, _decoded(image, name, num_channels)
    if isinstance(image, np.ndarray):
        return name, _channels_first(image, name)
    path = path_of(image, name, f"images are {_KINDS}", "a PIL image")
    name = f"{name}, {path!r},"
    try:
        opened = Image.open(path)
    # Decoders raise what they like.
    except Exception as error:
        raise InputError(f"{name} cannot be opened: {type(error).__name__}: {error}") from error
    with opened:
        return name, _decoded(opened, name, num_channels)


def _decoded(image: Image.Image, name: str, num_channels: int) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: it is {image.width} x {image.height}")
    try:
        return upright(image, num_channels)
    except Exception as error:
        raise InputError(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def _channels_first(image: NDArray[Any], name: str) -> NDArray[Any]:
    if image.dtype.kind not in "uif":
        raise InputError(f"{name} is an array of {image.dtype}: give whole or floating numbers, such as uint8")
    if image.size == 0:
        raise InputError(f"{name} has no pixels: its shape is {image.shape}")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise InputError(f"{name} holds NaN or infinity: give finite pixels")
    if image.ndim == 2:
        return image[None]
    if image.ndim == 3 and image.shape[0] in _CHANNELS:
        return image
    if image.ndim == 3 and image.shape[2] in _CHANNELS:
        return np.moveaxis(image, -1, 0)
    raise InputError(
        f"{name} is an array of shape {image.shape}: give (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels"
    )
