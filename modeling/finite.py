"""Whether weights and images are finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

Images = torch.Tensor | Iterable[torch.Tensor]


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; None if there is none.

    Args:
        tensors: By name. Whole numbers and tensors without values (`meta`) are passed over.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def finite_batches(pixel_values: Images) -> Iterator[torch.Tensor]:
    """Batches of images, one or several; empty ones are left out.

    Raises:
        ValueError: At a batch with a NaN or an infinity in it.
    """
    batches = [pixel_values] if isinstance(pixel_values, torch.Tensor) else pixel_values
    for number, batch in enumerate(batches):
        if first_not_finite([("pixel_values", batch)]) is not None:
            raise ValueError(f"batch {number} of the images (from 0) holds NaN or infinity: leave such images out")
        if len(batch):
            yield batch
