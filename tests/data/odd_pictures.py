"""Encoded images of every odd kind that Pillow reads: turned, with palettes, transparency, more bits, more frames."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112
SIZE = (16, 24)  # height and width: a quarter turn can be told


def noise(mode: str, seed: int = 0) -> Image.Image:
    """An image of another value at every pixel."""
    generator = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 2**16, SIZE, dtype=np.uint16))
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    return Image.fromarray(generator.integers(0, 256, (*SIZE, *channels), dtype=np.uint8), mode)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def turned(orientation: int, format: str = "JPEG") -> bytes:
    """An image that its EXIF orientation turns or mirrors."""
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return encode(noise("RGB"), format, exif=exif)


def palette(transparency: int | bytes | None = None) -> bytes:
    image = noise("RGB").quantize(16)
    return encode(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def frames(format: str) -> bytes:
    """Three frames, of which the first counts."""
    first, *others = (noise("RGB", seed) for seed in range(3))
    return encode(first, format, save_all=True, append_images=others)


ODD: dict[str, Callable[[], bytes]] = {
    **{f"EXIF orientation {n}": partial(turned, n) for n in range(1, 9)},
    "EXIF orientation in PNG": partial(turned, 6, "PNG"),
    "EXIF orientation in WebP": partial(turned, 8, "WEBP"),
    "EXIF orientation in TIFF": partial(turned, 3, "TIFF"),
    "grey": lambda: encode(noise("L"), "PNG"),
    "bilevel": lambda: encode(noise("L").convert("1"), "PNG"),
    "16 bits": lambda: encode(noise("I;16"), "PNG"),
    "16 bits TIFF": lambda: encode(noise("I;16"), "TIFF"),
    "grey with transparency": lambda: encode(noise("LA"), "PNG"),
    "colours with transparency": lambda: encode(noise("RGBA"), "PNG"),
    "CMYK": lambda: encode(noise("CMYK"), "JPEG"),
    "palette": palette,
    "palette, one colour transparent": partial(palette, 3),
    "palette, a transparency each": partial(palette, bytes(range(0, 160, 10))),
    "animated GIF": partial(frames, "GIF"),
    "animated PNG": partial(frames, "PNG"),
    "animated WebP": partial(frames, "WEBP"),
    "TIFF of pages": partial(frames, "TIFF"),
}
