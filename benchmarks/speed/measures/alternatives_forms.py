"""Other forms of a network's weights: the names of their files, and int8.

It is imported in processes whose imports are timed, and imports torch alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

INT8, BF16, MODULES = "int8.safetensors", "bf16", "modules.safetensors"
BOTH, STUDENT_CONFIG = "both.safetensors", "student.json"

# Of a quantised tensor: its scales are beside it under its name and this.
SCALE = ":scale"
# Matrices of linear layers and kernels of convolutions; embeddings of positions, norms and biases are a percent of all.
_QUANTISED_DIMENSIONS = (2, 4)


def quantised(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's tensors with matrices and kernels in int8: per output channel, symmetric, nearest.

    Args:
        state: Tensors by name, of floating point where they have 2 or 4 dimensions.

    Returns:
        Those in int8, (out, ...), with their scales in fp32, (out,), under the name and `SCALE`; the rest as it is.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() not in _QUANTISED_DIMENSIONS:
            found[name] = tensor.contiguous()
            continue
        largest = tensor.abs().flatten(1).amax(dim=1).float()
        # A channel of zeros stays one.
        scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        found[name] = (tensor / _along(scale, tensor)).round().to(torch.int8)
        found[name + SCALE] = scale
    return found


def dequantised(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `quantised` gave, in fp32 again."""
    return {
        name: tensor * _along(stored[name + SCALE], tensor) if name + SCALE in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }


def _along(scale: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, *[1] * (tensor.dim() - 1))
