"""The teacher's blocks in low precision, as torch has them: read, made of the blocks, split and made exact again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays.packing import coarsen, pack, unpack
from ..arrays.splitting import KINDS
from .blueprint import TensorSpec
from .part import Part, Tensors

# Whole numbers of a dtype's size: numpy has no bfloat16, and takes bits.
_BITS = {2: (torch.int16, np.uint16), 4: (torch.int32, np.uint32)}


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse a dtype whose values are not split.

    Raises:
        ValueError: With the dtypes that are.
    """
    if dtype_name(dtype) not in KINDS:
        raise ValueError(
            f"low precision is made of {', '.join(KINDS)}, the model is {dtype_name(dtype)}: cast it first"
        )


def coarse(part: Part, exact: Tensors, bits: int) -> Tensors:
    """A block in low precision, made of the block itself.

    Args:
        part: The part in low precision.
        exact: The tensors of the block, named as the teacher's, on any device.
        bits: 8 or 4.

    Returns:
        Its tensors by full in-memory name, on the CPU; none shares memory with the block's.
    """
    given = {name.partition(".")[2]: tensor for name, tensor in exact.items()}
    found = {}
    for name, spec in part.specs.items():
        tensor = given[name.partition(".")[2]].detach().cpu()
        words = coarsen(_words(tensor), dtype_name(tensor.dtype), bits) if spec.is_floating else None
        # What is no matrix comes back as it is: a change of the one would be a change of the other.
        found[name] = tensor.clone() if words is None else _tensor(words, tensor.dtype)
    return found


def digest_of(tensors: Tensors) -> bytes:
    """A digest of tensors' names, dtypes, shapes and bits; of the meta device, which has no bits, of the rest."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def read_split(specs: Mapping[str, TensorSpec], files: Sequence[Path], dtype: torch.dtype) -> Tensors:
    """The tensors of a block, of its low precision, or of that and what makes it exact.

    Args:
        specs: The block's tensors by full in-memory name.
        files: One file or both, which were compared with their hashes before.
        dtype: The repository's.

    Returns:
        The tensors by full in-memory name, on the CPU.

    Raises:
        RepositoryError: If a file is not what it must be.
    """
    values = sum(torch.Size(spec.shape).numel() for spec in specs.values())
    arrays = unpack(files[0], files[1] if len(files) > 1 else None, dtype_name(dtype), values)
    found = {name: arrays[spec.checkpoint_name] for name, spec in specs.items()}
    return {n: _tensor(found[n], dtype) if s.is_floating else torch.from_numpy(found[n]) for n, s in specs.items()}


def split(tensors: Tensors, bits: int) -> tuple[Tensors, dict[str, str], Tensors]:
    """What a block's two files hold.

    Args:
        tensors: The block's, by name in its shard, on the CPU.
        bits: 8 or 4.

    Returns:
        The tensors of low precision by name in the file, its metadata, and the tensors of what makes it exact.
    """
    dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    given = {name: _words(tensor) if tensor.is_floating_point() else tensor.numpy() for name, tensor in tensors.items()}
    packed = pack(given, dtype_name(dtype), bits)
    low = {n: tensors[n] if n in tensors else torch.from_numpy(array.copy()) for n, array in packed.low.items()}
    return low, packed.metadata, {name: torch.from_numpy(array.copy()) for name, array in packed.rest.items()}


def floating_shapes(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    """The shapes of a block's floating tensors, by name in its files."""
    return {spec.checkpoint_name: spec.shape for spec in specs.values() if spec.is_floating}


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name, as the manifest has it."""
    return str(dtype).removeprefix("torch.")


def _words(tensor: torch.Tensor) -> NDArray[Any]:
    signed, unsigned = _BITS[tensor.itemsize]
    found: NDArray[Any] = tensor.contiguous().view(signed).numpy().view(unsigned)
    return found


def _tensor(words: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    signed = np.int16 if words.itemsize == 2 else np.int32
    return torch.from_numpy(words.view(signed)).view(dtype)
