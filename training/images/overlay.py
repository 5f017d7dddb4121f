"""Training images under the integrated gradients of the teacher.

Source: "Model compression using knowledge distillation with integrated gradients" (arXiv 2506.14440). In its published
code maps, logits and images come from loaders that shuffle by themselves, so they do not belong together. Here maps
are found by sample id, each use checks that the map was made of the image, and images are laid under their maps before
both are augmented as one.

Notation: B images of C channels, H x W pixels.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import tqdm
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, PreTrainedModel

from pwl_hf.data.processing import channels_of
from pwl_hf.training.images.augmentation import Augmentation
from pwl_hf.training.images.gradient_arguments import GradientArguments
from pwl_hf.training.images.gradient_maps import GradientMaps, GradientMapsError, MapSettings, compute_maps
from pwl_hf.training.images.gradients import PixelRange, fingerprint, pixel_range
from pwl_hf.training.images.noise import ring, uniforms

logger = logging.getLogger(__name__)

# Tells these draws from others of the same image and step.
_PURPOSE = 0x16D


@dataclass(frozen=True, eq=False)
class GradientOverlay:
    """With a probability, an image becomes half the image, half its map as a grey image; then come other changes.

    The map is raised to a power s, drawn log-uniformly from [1, 2] at every use, and stretched to [0, 1]. The two are
    mixed as pixels are before normalisation, which is the same as mixing after it where the map's 0 is the
    processor's black and its 1 the white.

    Args:
        maps: The maps, of all images that are trained on.
        pixels: The processor's black and white.
        probability: Part of the images, 0 to 1.
        weight: The map's part of an image.
        others: For a control, whose map an image gets in place of its own (see `derangement`); (n,) places.
        then: What is done to the mixed images.
    """

    maps: GradientMaps
    pixels: PixelRange
    probability: float = 0.1
    weight: float = 0.5
    others: torch.Tensor | None = None
    then: Augmentation | None = None

    def augment(self, pixel_values: torch.Tensor, sample_ids: torch.Tensor, seed: int, step: int) -> torch.Tensor:
        """A batch; which images are mixed, and to which power the maps go, depends on (seed, step, sample id) alone.

        Args:
            pixel_values: (B, C, H, W), floating, of any device, as the maps were made of them.
            sample_ids: (B,) int64.
            seed: The run's seed.
            step: The step's number.

        Returns:
            The same shape, dtype and device.

        Raises:
            GradientMapsError: If an image that is to be mixed has no map, one of another image, or of another size.
        """
        chance, exponent = uniforms(sample_ids.to(pixel_values.device), 2, seed, step, _PURPOSE)
        chosen = (chance < self.probability).nonzero()[:, 0]
        if len(chosen):
            mixed = self._mix(pixel_values[chosen], sample_ids.to(chosen.device)[chosen], 2 ** exponent[chosen])
            pixel_values = pixel_values.index_copy(0, chosen, mixed)
        return pixel_values if self.then is None else self.then.augment(pixel_values, sample_ids, seed, step)

    def _mix(self, images: torch.Tensor, sample_ids: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
        places = self.maps.places(images, sample_ids)
        maps = self.maps.at(places if self.others is None else self.others[places]).to(images.device)
        if maps.shape[1:] != images.shape[2:]:
            raise GradientMapsError(
                f"the gradient maps in {self.maps.folder} have {maps.shape[1]}x{maps.shape[2]} pixels, the images "
                f"{images.shape[2]}x{images.shape[3]}: delete the folder, and the maps are computed again"
            )
        grey = stretched(maps, power)[:, None]
        black, white = (value.to(images.device) for value in self.pixels)
        return torch.lerp(images.float(), black + grey * (white - black), self.weight).to(images.dtype)


def stretched(maps: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
    """Maps raised to a power and brought to [0, 1], each by its least and its greatest value.

    Args:
        maps: (B, H, W), not negative.
        power: (B,), positive.

    Returns:
        (B, H, W); 0 for a map that is the same everywhere.
    """
    raised = maps ** power[:, None, None]
    least, greatest = raised.amin((1, 2), keepdim=True), raised.amax((1, 2), keepdim=True)
    span = greatest - least
    return (raised - least) / torch.where(span > 0, span, 1)


def derangement(count: int, seed: int) -> torch.Tensor:
    """Another place for each of `count` places, (count,) int64: all in one ring of random order, none at its own.

    Raises:
        ValueError: For fewer than two places.
    """
    if count < 2:
        raise ValueError(f"maps are shuffled among at least 2 images, got {count}")
    return ring(torch.randperm(count, generator=torch.Generator().manual_seed(seed)))


def gradient_overlay(
    arguments: GradientArguments,
    teacher: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Any,
    *,
    title: str,
    folder: str | Path,
    uses_labels: bool = True,
    seed: int = 0,
    then: Augmentation | None = None,
    num_workers: int = 0,
    disable_tqdm: bool = False,
) -> GradientOverlay:
    """The overlay that the options ask for; maps that its folder lacks are computed first, by all processes.

    Args:
        arguments: The options.
        teacher: Whose gradients, in eval mode; its device is where they are computed.
        processor: The images' processor.
        dataset: The images that are trained on, with `pixel_values`, `sample_ids` and `labels` if there are any, as a
            torch dataset of either kind; it is read once.
        title: What the data is called.
        folder: Where the maps are, unless the options say it.
        uses_labels: Whether training looks at labels. If it does not, neither do the maps, unless asked to.
        seed: Of the control with shuffled maps.
        then: What is done to the images afterwards.
        num_workers: Processes that read images.
        disable_tqdm: Show no progress bar.

    Raises:
        GradientMapsError: If the folder has maps of another teacher, other data or other settings.
        ValueError: If the maps need labels and there are none, or the processor is not fit.
    """
    state = PartialState()
    folder = Path(arguments.ig_maps or folder)
    target = arguments.ig_target or ("label" if uses_labels else "prediction")
    settings = MapSettings(fingerprint(teacher), title, target, arguments.ig_steps)
    pixels = pixel_range(processor, channels_of(teacher.config))
    loader: DataLoader[Any] = DataLoader(dataset, arguments.ig_batch_size, num_workers=num_workers)
    start = time.perf_counter()
    count = compute_maps(
        folder,
        settings,
        teacher,
        pixels.black,
        tqdm(loader, desc="gradient maps", disable=disable_tqdm),
        internal_batch_size=arguments.ig_batch_size,
        process_index=state.process_index,
        num_processes=state.num_processes,
    )
    logger.info("computed %d gradient maps here in %.1f s, in %s", count, time.perf_counter() - start, folder)
    state.wait_for_everyone()
    maps = GradientMaps(folder, settings)
    others = derangement(len(maps), seed) if arguments.ig_control == "shuffled" else None
    return GradientOverlay(maps, pixels, arguments.ig_probability, others=others, then=then)
