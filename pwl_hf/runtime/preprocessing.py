"""From images to what a network takes, in Pillow and numpy: bit for bit what transformers makes of them with Pillow.

Its processors come in two kinds. Those of Pillow (`ViTImageProcessorPil`) are equalled here: they are what
`AutoImageProcessor` gives where torchvision is not installed, and anywhere with `backend="pil"`. Those of torchvision,
which it prefers where it can, resize in arithmetic of their own, so their pixels differ a little.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pwl_hf.data.processing import check_channels
from pwl_hf.modeling.errors import InputError
from pwl_hf.runtime.images import Images, Picture, read_images
from pwl_hf.runtime.processor_config import MAX_EDGE, Normalization, Settings, Size, read_settings

Array = NDArray[Any]
Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """An image processor: `Preprocessing.of(config)(images)`.

    It does not change, and threads may share it.

    Args:
        settings: The steps.
        num_channels: The network's input channels C.
        table: What becomes of each of the 256 values that a pixel has, (C, 256).

    Example:

        >>> processor = Preprocessing.of({"image_processor_type": "ViTImageProcessor", "size": 32})
        >>> processor([Image.new("RGB", (640, 480)), "cat.jpg"]).shape  # doctest: +SKIP
        (2, 3, 32, 32)
    """

    settings: Settings
    num_channels: int
    table: Pixels

    @classmethod
    def of(cls, config: Mapping[str, Any], num_channels: int = 3) -> Self:
        """The processor that a `preprocessor_config.json` describes.

        Args:
            config: What the file says, of any version of transformers.
            num_channels: The network's input channels.

        Raises:
            ValueError: If a type, a field or a value is not supported, or does not fit the channels: names it, and what
                to do.
        """
        check_channels(num_channels)
        settings = read_settings(config, num_channels)
        steps = np.broadcast_to(np.arange(256, dtype=np.uint8), (num_channels, 1, 256))
        with np.errstate(all="ignore"):
            table = _values(steps, settings).astype(np.float32)[:, 0]
        if not np.isfinite(table).all():
            raise ValueError(
                "preprocessor_config.json has a rescale_factor, image_mean or image_std that makes pixels too large "
                f"for float32: {settings.scale!r}, {settings.normalizations!r:.200}"
            )
        return cls(settings, num_channels, table)

    def __call__(self, images: Images) -> Pixels:
        """Images as the network takes them.

        PIL images and files are turned as their EXIF orientation says and given the network's channels, as everywhere
        in this package. Arrays are taken as they are, as transformers takes them: floating values within 0 and 1 are
        resized in 256 steps, others must be whole.

        Args:
            images: A PIL image, an array (H, W), (C, H, W) or (H, W, C), or the path of a file; a sequence of these; or
                an array (B, C, H, W) or (B, H, W, C).

        Returns:
            (B, C, H, W) float32; C first, whatever came in.

        Raises:
            InputError: A ValueError that names the image by its number from 0 and its path, if it cannot be read, has
                other channels or values than the network takes, or another size than the others where none is set.
        """
        processed: list[Pixels] = []
        names: list[str] = []
        for name, picture in read_images(images, self.num_channels):
            names.append(name)
            processed.append(self._process(picture, name))
            (height, width), (first_height, first_width) = processed[-1].shape[1:], processed[0].shape[1:]
            if (height, width) != (first_height, first_width):
                raise InputError(
                    f"{names[0]} becomes {first_width} x {first_height} pixels and {name} {width} x {height}, as the "
                    "image processor sets no size for all: give images of one size, or one at a time"
                )
        return np.stack(processed)

    def _process(self, picture: Picture, name: str) -> Pixels:
        """One image, (C, H, W)."""
        settings = self.settings
        # 1. RGB, if the processor says so; an image of Pillow's already has the network's channels.
        if settings.to_rgb:
            picture = _over_white(picture, name)
        # 2. Resized.
        if settings.size is None:
            image = _to_array(picture)
        elif isinstance(picture, Image.Image):
            image = _to_array(_resized(picture, settings.size, settings.resample, name))
        else:
            image = _resized_array(picture, settings.size, settings.resample, name)
        if len(image) != self.num_channels:
            raise InputError(f"{name} has {len(image)} channel(s), and the network takes {self.num_channels}")
        # 3. Cropped, still in the values that it came with: what is padded is black.
        for crop in settings.crops:
            image = _cropped(image, *crop)
        # 4. Rescaled and normalised; of the 256 values of bytes it is known what they become.
        if image.dtype == np.uint8:
            pixels = np.empty(image.shape, dtype=np.float32)
            for channel, values, out in zip(image, self.table, pixels, strict=True):
                np.take(values, channel, out=out, mode="clip")
            return pixels
        with np.errstate(over="ignore"):
            pixels = _values(image, settings).astype(np.float32)
        if not np.isfinite(pixels).all():
            raise InputError(f"{name} has values up to {np.abs(image).max()}, too large for float32 pixels")
        return pixels


def _values(image: Array, settings: Settings) -> Array:
    """Rescaled and normalised, in the types and order of transformers: (C, H, W)."""
    if settings.scale is not None:
        image = (image.astype(np.float64) * settings.scale).astype(np.float32)
    if settings.offset:
        image = image - 1
    for normalization in settings.normalizations:
        image = _normalized(image, normalization)
    return image


def _normalized(image: Array, normalization: Normalization) -> Array:
    if not np.issubdtype(image.dtype, np.floating):
        image = image.astype(np.float32)
    mean, std = (np.array(number, dtype=image.dtype).reshape(-1, 1, 1) for number in normalization)
    result: Array = (image - mean) / std
    return result


def _to_array(picture: Picture) -> Array:
    if not isinstance(picture, Image.Image):
        return picture
    image = np.asarray(picture)
    return image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)


def _over_white(picture: Picture, name: str) -> Picture:
    """An image in RGB, what is transparent over white."""
    if isinstance(picture, Image.Image):
        # An RGB image may still name one colour that is transparent.
        if picture.info.get("transparency") is None:
            return picture
        image = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert("RGB")
    if len(picture) == 1:
        return np.repeat(picture, 3, axis=0)
    if len(picture) != 4:
        return picture
    is_whole = np.issubdtype(picture.dtype, np.integer)
    if not is_whole and (picture.min() < 0 or picture.max() > 1):
        raise InputError(
            f"{name} has transparency and fractions from {picture.min()} to {picture.max()}: give them from 0 to 1"
        )
    white = 255 if is_whole else 1.0
    alpha = picture[3:4] / white
    blended = alpha * picture[:3] + (1 - alpha) * white
    return (np.round(blended) if is_whole else blended).astype(picture.dtype)


def _resized(image: Image.Image, size: Size, resample: int, name: str) -> Image.Image:
    height, width = _size_of(image.height, image.width, size)
    if not (height > 0 and width > 0 and height * width <= MAX_EDGE**2):
        raise InputError(
            f"{name} is {image.width} x {image.height} pixels and would be resized to {width} x {height}: give one "
            "that is less elongated"
        )
    return image.resize((width, height), resample=Image.Resampling(resample))


def _resized_array(image: Array, size: Size, resample: int, name: str) -> Array:
    """(C, H, W), resized as an image of bytes."""
    low, high = image.min(), image.max()
    # Larger values are not cast, for some have no whole number.
    is_whole = low >= 0 and high <= 255 and _is_whole(image)
    if low < 0 or high > (255 if is_whole else 1):
        raise InputError(
            f"{name} has values from {low} to {high}: give whole numbers from 0 to 255, or fractions from 0 to 1"
        )
    if not is_whole:
        image = (image.astype(np.float64) * 255).astype(np.float32)
    last = np.moveaxis(image.astype(np.uint8), 0, -1)
    picture = Image.fromarray(np.ascontiguousarray(last[..., 0] if last.shape[-1] == 1 else last))
    resized = _to_array(_resized(picture, size, resample, name))
    return resized if is_whole else (resized.astype(np.float64) * (1 / 255)).astype(np.float32)


def _is_whole(image: Array) -> bool:
    return image.dtype == np.uint8 or bool(np.allclose(image, image.astype(int)))


def _size_of(height: int, width: int, size: Size) -> tuple[int, int]:
    """The height and width that an image of a height and width is resized to."""
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    edge = size["shortest_edge"]
    short, long = min(height, width), max(height, width)
    if "longest_edge" not in size:
        edges = edge, int(edge * long / short)
    else:
        edges = _within(short, long, edge, size["longest_edge"])
    return edges if height <= width else (edges[1], edges[0])


def _within(short: int, long: int, edge: int, longest: int) -> tuple[int, int]:
    """The short and the long side, of which the long one is at most `longest`."""
    exact: float = edge
    if float(long) / float(short) * edge > longest:
        exact = longest * float(short) / float(long)
        edge = round(exact)
    return (short, long) if short == edge else (edge, int(exact * long / short))


def _cropped(image: Array, height: int, width: int) -> Array:
    """(C, height, width) from the centre of (C, H, W); smaller ones are padded with zeros."""
    rows, columns = image.shape[1:]
    top, left = (rows - height) // 2, (columns - width) // 2
    if top >= 0 and left >= 0:
        return image[:, top : top + height, left : left + width]
    # Padded first to hold the crop, with the odd pixel before the image.
    canvas = np.zeros((len(image), max(height, rows), max(width, columns)), dtype=image.dtype)
    above, before = ceil((canvas.shape[1] - rows) / 2), ceil((canvas.shape[2] - columns) / 2)
    canvas[:, above : above + rows, before : before + columns] = image
    top, left = top + above, left + before
    return canvas[:, max(0, top) : top + height, max(0, left) : left + width]
