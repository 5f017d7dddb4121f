"""Images turned, flipped, cropped, scaled and shifted, a batch at a time, on any device.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from pwl_hf.training.images.noise import uniforms

# Tells these draws from others of the same image and step.
_PURPOSE = 0xA06


@dataclass(frozen=True)
class Augmentation:
    """What is done to images, each on its own; the default is nothing.

    All of it is one change of coordinates: an image is read once, so turning does not blur what cropping moves.
    Lengths are parts of a side, so that they mean the same at every resolution.

    Args:
        rotation: Turn by up to this many degrees, either way.
        horizontal_flip: Mirror every second image, by chance.
        crop: Move by up to this part of a side, in whole pixels: a crop of the padded image.
        scale: Grow or shrink by up to this part.
        shift: Move by up to this part of a side, by parts of a pixel as well.
        background: What moves in from outside is each channel's least value, for images that have a background,
            rather than the image's own reflection.

    Raises:
        ValueError: If a setting is out of its range.
    """

    rotation: float = 0.0
    horizontal_flip: bool = False
    crop: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    background: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is an angle from 0 to 180 degrees, got {self.rotation}")
        for name in ("crop", "scale", "shift"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a part, from 0 to below 1, got {getattr(self, name)}")

    def augment(self, pixel_values: torch.Tensor, sample_ids: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """A batch, each image changed in the way that (seed, step, sample id) says.

        It does not depend on the batch's order or on what else is in it, and so is the same in one process or
        several, and after resuming. Maps of the same images are changed in the very same way by another call with
        the same ids, seed and step, or along with them as further channels.

        Args:
            pixel_values: (B, C, H, W), floating, of any device.
            sample_ids: (B,) int64, the images' numbers.
            seed: The run's seed.
            step: The step's number.

        Returns:
            The same shape, dtype and device; the input itself if there is nothing to do.

        Raises:
            ValueError: If there is not one id for each image.
        """
        if sample_ids.shape != pixel_values.shape[:1]:
            shapes = f"{tuple(sample_ids.shape)} for pixel_values of {tuple(pixel_values.shape)}"
            raise ValueError(f"sample_ids must be one for each image, got {shapes}")
        if self == Augmentation(background=self.background) or not len(pixel_values):
            return pixel_values
        way = self._draw(pixel_values, sample_ids, seed, step)
        floor = pixel_values.amin((2, 3), keepdim=True) if self.background else None
        if self.rotation == self.scale == self.shift == 0:
            return _take(pixel_values, way, floor)
        return _resample(pixel_values, way, floor)

    def _draw(self, pixel_values: torch.Tensor, sample_ids: torch.Tensor, seed: int, step: int) -> _Way:
        height, width = pixel_values.shape[-2:]
        noise = uniforms(sample_ids.to(pixel_values.device), 7, seed, step, _PURPOSE)
        angle, scale, right, down = noise[:4] * 2 - 1
        flipped = noise[4] < 0.5 if self.horizontal_flip else torch.zeros_like(noise[4], dtype=torch.bool)
        return _Way(
            angle * math.radians(self.rotation),
            1 + scale * self.scale,
            1 - 2 * flipped.long(),
            (_whole(noise[5], self.crop, width), _whole(noise[6], self.crop, height)),
            (right * self.shift * width, down * self.shift * height),
        )


class _Way(NamedTuple):
    """From a place in the result to the place in the image that is read there; all (B,), lengths in pixels."""

    angle: torch.Tensor
    scale: torch.Tensor
    mirror: torch.Tensor
    crop: tuple[torch.Tensor, torch.Tensor]
    shift: tuple[torch.Tensor, torch.Tensor]


def _whole(noise: torch.Tensor, part: float, side: int) -> torch.Tensor:
    """Pixels from -p to p, each as likely, where p is the part of a side."""
    reach = round(part * side)
    return (noise * (2 * reach + 1)).long() - reach


def _take(images: torch.Tensor, way: _Way, floor: torch.Tensor | None) -> torch.Tensor:
    """By whole pixels: values are moved, and none is changed."""
    height, width = images.shape[-2:]
    columns = torch.arange(width, device=images.device)
    columns = torch.where(way.mirror[:, None] < 0, columns.flip(0), columns) + way.crop[0][:, None]
    rows = torch.arange(height, device=images.device) + way.crop[1][:, None]
    places = _reflect(rows, height)[:, :, None] * width + _reflect(columns, width)[:, None, :]
    taken = images.flatten(2).gather(2, places.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    if floor is None:
        return taken
    inside = (rows == _reflect(rows, height))[:, None, :, None] & (columns == _reflect(columns, width))[:, None, None]
    return torch.where(inside, taken, floor)


def _reflect(places: torch.Tensor, side: int) -> torch.Tensor:
    """Places outside an image, mirrored at its outermost pixels into it."""
    if side == 1:
        return torch.zeros_like(places)
    places = places.abs() % (2 * side - 2)
    return torch.minimum(places, 2 * side - 2 - places)


def _resample(images: torch.Tensor, way: _Way, floor: torch.Tensor | None) -> torch.Tensor:
    """By any distance: between pixels, linearly in both directions."""
    height, width = images.shape[-2:]
    # With align_corners, coordinates go from -1 at the first pixel's centre to 1 at the last one's, and the
    # reflection is that of `_reflect`.
    across, along = max(width - 1, 1) / 2, max(height - 1, 1) / 2
    cosine, sine = way.angle.cos() * way.scale, way.angle.sin() * way.scale
    theta = torch.stack(
        [
            torch.stack([cosine * way.mirror, -sine * along / across, (way.crop[0] + way.shift[0]) / across], dim=1),
            torch.stack([sine * way.mirror * across / along, cosine, (way.crop[1] + way.shift[1]) / along], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=True)
    # In float32 whatever the images are: in bfloat16 a place would be rounded by more than a pixel.
    values = images.float()
    if floor is None:
        moved = functional.grid_sample(values, grid, padding_mode="reflection", align_corners=True)
    else:
        floor = floor.float()
        moved = functional.grid_sample(values - floor, grid, padding_mode="zeros", align_corners=True) + floor
    return moved.to(images.dtype)


AUGMENTATIONS = {
    "none": Augmentation(),
    # Up to half a pixel of 8. A mirrored digit is no digit, so nothing is flipped.
    "digits": Augmentation(rotation=10, scale=0.1, shift=0.5 / 8, background=True),
    # arXiv 2509.22319: 15 degrees, flip, a crop after a reflecting padding of 4 pixels at 32.
    "paper": Augmentation(rotation=15, horizontal_flip=True, crop=4 / 32),
    # What networks for images of this size are mostly trained with: nothing is interpolated.
    "flip-crop": Augmentation(horizontal_flip=True, crop=4 / 32),
}
