"""Integrated gradients of many images, computed once and kept on disk by sample id.

A store is a folder of safetensors files, each of up to 1024 maps; a file tells in its metadata whose gradients they
are, of what. Files appear whole or not at all, so a computation that was ended goes on where it was, and processes
share one out; runs that use one folder do not disturb one another.

    sample_ids  (n,) int64
    maps        (n, H, W) float16, each divided by its greatest value: later steps do not depend on the scale
    means       (n,) float32, the mean of the image's pixel values, by which a map of another image is found out

Notation: B images, H x W pixels.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from pwl_hf.modeling.errors import PWLError
from pwl_hf.modeling.repository.files import atomic_write
from pwl_hf.training.images.gradients import integrated_gradients

_FORMAT = "pwl-gradient-maps/1"
_PER_FILE = 1024
# Of an image's mean: what half precision may cost.
_TOLERANCE = 0.01


class GradientMapsError(PWLError, ValueError):
    """Stored maps that are not those asked for: names the file or the image, what was found, and what to do."""


@dataclass(frozen=True)
class MapSettings:
    """What maps depend on; those of other settings are refused.

    Args:
        teacher: The network's fingerprint.
        dataset: What the data is called.
        target: Whose logit: `"label"`, or `"prediction"`, the network's own answer, which needs no labels.
        steps: Points of the integral.
    """

    teacher: str
    dataset: str
    target: str
    steps: int

    def metadata(self) -> dict[str, str]:
        """As a file has it."""
        fixed = {"format": _FORMAT, "baseline": "black", "method": "gausslegendre"}
        return fixed | {name: str(value) for name, value in asdict(self).items()}


class GradientMaps:
    """The maps of a folder, for reading; a map comes into memory when it is used.

    Args:
        folder: The folder; it need not exist.
        settings: What its maps must be of.

    Raises:
        GradientMapsError: If a file is damaged, or of other settings.

    Attributes:
        sample_ids: Which images there are maps of, (n,) int64, rising.
    """

    def __init__(self, folder: str | Path, settings: MapSettings) -> None:
        self.folder = Path(folder)
        files = [_read(path, settings) for path in sorted(self.folder.glob("maps-*.safetensors"))]
        self._maps = [file["maps"] for file in files]
        ids = _cat([file["sample_ids"] for file in files], torch.int64)
        order = ids.argsort(stable=True)
        # Runs side by side may both have computed a map: it is there once.
        order = order[torch.cat([torch.ones(len(ids[:1]), dtype=torch.bool), ids[order].diff() > 0])]
        self.sample_ids = ids[order]
        self._means = _cat([file["means"] for file in files], torch.float32)[order]
        counts = [len(found) for found in self._maps]
        self._file = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))[order]
        self._row = _cat([torch.arange(count) for count in counts], torch.int64)[order]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def missing(self, sample_ids: torch.Tensor) -> torch.Tensor:
        """Which of (B,) ids there is no map of, (B,) bool."""
        return ~torch.isin(sample_ids, self.sample_ids)

    def places(self, pixel_values: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        """Where the maps of images are, (B,) int64.

        Args:
            pixel_values: (B, C, H, W): the images as the maps were made of them.
            sample_ids: (B,) int64, of the same device or not.

        Raises:
            GradientMapsError: If an image has no map, or its map was made of another image.
        """
        ids = sample_ids.cpu()
        absent = self.missing(ids)
        if absent.any():
            raise GradientMapsError(
                f"{self.folder} has no gradient map of sample {int(ids[absent][0])}: its maps are of {len(self)} "
                "other images; compute them for the images that are trained on"
            )
        places = torch.searchsorted(self.sample_ids, ids)
        found, stored = pixel_values.float().mean((1, 2, 3)).cpu(), self._means[places]
        wrong = ~torch.isclose(found, stored, rtol=_TOLERANCE, atol=_TOLERANCE)
        if wrong.any():
            i = int(wrong.nonzero()[0])
            raise GradientMapsError(
                f"the gradient map of sample {int(ids[i])} in {self.folder} was made of another image: its mean was "
                f"{float(stored[i]):.4f}, now it is {float(found[i]):.4f}; delete the folder, and the maps are "
                "computed again"
            )
        return places

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """The maps at places, (B, H, W) float32 from 0 to 1."""
        pairs = zip(self._file[places].tolist(), self._row[places].tolist(), strict=True)
        return torch.stack([self._maps[file][row] for file, row in pairs]).float()


def compute_maps(
    folder: str | Path,
    settings: MapSettings,
    network: nn.Module,
    baseline: torch.Tensor,
    batches: Iterable[dict[str, Any]],
    *,
    internal_batch_size: int = 256,
    process_index: int = 0,
    num_processes: int = 1,
) -> int:
    """Compute the maps that a folder lacks.

    Args:
        folder: The folder, made if need be.
        settings: Of what they are; `teacher` is the network's fingerprint.
        network: The teacher, in eval mode; its device is where they are computed.
        baseline: (C, 1, 1), what black is.
        batches: Of `pixel_values` (B, C, H, W), `sample_ids` (B,), and for target "label" `labels` (B,).
        internal_batch_size: Images in one pass.
        process_index: Which process this is.
        num_processes: Processes that share the work out; each takes its ids, of one folder.

    Returns:
        How many were computed here.

    Raises:
        GradientMapsError: If the folder has maps of other settings, or damaged ones.
        ValueError: If there are no labels and the settings' target is the label.
    """
    folder = Path(folder)
    stored = GradientMaps(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    parts: dict[str, list[torch.Tensor]] = {"sample_ids": [], "maps": [], "means": []}
    for images, ids, target in _to_do(stored, network, settings, batches, process_index, num_processes):
        maps = integrated_gradients(
            network, images, target, baseline, steps=settings.steps, internal_batch_size=internal_batch_size
        ).cpu()
        peak = maps.amax((1, 2), keepdim=True)
        parts["maps"].append((maps / torch.where(peak > 0, peak, 1)).half())
        parts["sample_ids"].append(ids)
        parts["means"].append(images.float().mean((1, 2, 3)).cpu())
        count += len(ids)
        if sum(map(len, parts["sample_ids"])) >= _PER_FILE:
            _write(folder, settings, parts)
    if parts["sample_ids"]:
        _write(folder, settings, parts)
    return count


def _to_do(
    stored: GradientMaps,
    network: nn.Module,
    settings: MapSettings,
    batches: Iterable[dict[str, Any]],
    process_index: int,
    num_processes: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    device = next(network.parameters()).device
    for batch in batches:
        ids = torch.as_tensor(batch["sample_ids"])
        wanted = stored.missing(ids) & (ids % num_processes == process_index)
        if not wanted.any():
            continue
        images = batch["pixel_values"][wanted].to(device)
        if settings.target == "prediction":
            with torch.no_grad():
                target = network(pixel_values=images).logits.argmax(-1)
        elif batch.get("labels") is None:
            raise ValueError(
                "integrated gradients of the label's logit need labels, and the images have none: set ig_target to "
                "prediction"
            )
        else:
            target = torch.as_tensor(batch["labels"])[wanted].to(device)
        yield images, ids[wanted], target


def _read(path: Path, settings: MapSettings) -> dict[str, torch.Tensor]:
    again = "delete it, and its maps are computed again"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise GradientMapsError(f"{path} is no readable file of gradient maps ({error}): {again}") from error
    for name, wanted in settings.metadata().items():
        if metadata.get(name) != wanted:
            raise GradientMapsError(
                f"the gradient maps in {path} have {name} {metadata.get(name)!r}, but {wanted!r} is asked for: give "
                "another ig_maps, or delete that folder"
            )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if set(shapes) != {"sample_ids", "maps", "means"} or len({shape[:1] for shape in shapes.values()}) != 1:
        raise GradientMapsError(f"{path} has not the tensors of a file of gradient maps, but {shapes}: {again}")
    return tensors


def _write(folder: Path, settings: MapSettings, parts: dict[str, list[torch.Tensor]]) -> None:
    """Write a file, whole or not at all, and empty the parts."""
    tensors = {name: torch.cat(found) for name, found in parts.items()}
    # Of a name that no other process chooses.
    path = folder / f"maps-{uuid.uuid4().hex}.safetensors"
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=settings.metadata())
    for found in parts.values():
        found.clear()


def _cat(tensors: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(tensor.to(dtype) for tensor in tensors)])
