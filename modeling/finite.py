"""Whether weights are numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity in it; None if there is none.

    Args:
        tensors: By name. Whole numbers and tensors without values (`meta`) are passed over.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
            return name
    return None
