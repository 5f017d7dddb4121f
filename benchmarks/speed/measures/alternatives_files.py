"""The files of what users would do instead: the teacher's weights in other forms, each a file that is written once.

- config.json, model.safetensors: the teacher as transformers saves it
- int8.safetensors: its matrices as int8, each output channel with its own scale
- bf16/: the teacher in bfloat16, as transformers saves it
- modules.safetensors: its tensors under the names of its modules, as accelerate reads them
- both.safetensors, student.json: teacher and student in one file
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.speed.figures import Place
from benchmarks.speed.hub import plain_teacher
from pwl_hf.modeling.families.registry import family_of

INT8, BF16, MODULES = "int8.safetensors", "bf16", "modules.safetensors"
BOTH, STUDENT_CONFIG = "both.safetensors", "student.json"

# accelerate asks for it.
_METADATA = {"format": "pt"}

# Of a quantised tensor: its scales are beside it under its name and this.
SCALE = ":scale"
# Matrices of linear layers and kernels of convolutions; embeddings of positions, norms and biases are a percent of all.
_QUANTISED_DIMENSIONS = (2, 4)


def alternatives(place: Place) -> Path:
    """The folder of a pair's files, made if it is not there."""
    folder = place.data / f"{place.name}-alternatives"
    if not (folder / BOTH).is_file():
        teacher, student = plain_teacher(place), place.repository() / "student"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(student / "config.json", folder / STUDENT_CONFIG)
        for path in teacher.iterdir():
            (folder / path.name).unlink(missing_ok=True)
            os.link(path, folder / path.name)
        network = family_of(place.pair.teacher).model_class()
        whole = network.from_pretrained(teacher)
        states = {"teacher": whole.state_dict(), "student": network.from_pretrained(student).state_dict()}
        save_file(states["teacher"], folder / MODULES, metadata=_METADATA)
        save_file(quantised(states["teacher"]), folder / INT8, metadata=_METADATA)
        whole.to(torch.bfloat16).save_pretrained(folder / BF16)
        # The last one: it tells that all are there.
        both = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
        save_file(both, folder / BOTH, metadata=_METADATA)
    return folder


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
