"""The tensors of a safetensors file, mapped and not copied (numpy, no torch)."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bounds import MAX_TEXT_BYTES
from ..errors import RepositoryError


class Format(NamedTuple):
    """How a dtype of the safetensors format is read.

    Args:
        numpy: The numpy dtype of its values; of bfloat16, which numpy lacks, that of its bits.
        onnx: Its number in ONNX (`TensorProto.DataType`).
    """

    numpy: str
    onnx: int


FORMATS = {
    "F64": Format("<f8", 11),
    "F32": Format("<f4", 1),
    "F16": Format("<f2", 10),
    "BF16": Format("<u2", 16),
    "I64": Format("<i8", 7),
    "I32": Format("<i4", 6),
    "I16": Format("<i2", 5),
    "I8": Format("<i1", 3),
    "U8": Format("<u1", 2),
    "BOOL": Format("<?", 9),
}
# What the safetensors format calls the floating dtypes.
CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in a file.

    Args:
        dtype: Its dtype, as the safetensors format calls it.
        shape: Its shape.
        offset: Where it begins, in bytes from the file's beginning.
        length: Its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    @property
    def format(self) -> Format:
        """How its values are read."""
        return FORMATS[self.dtype]


class TensorFile(Protocol):
    """Tensors by name, and what each is."""

    @property
    def places(self) -> Mapping[str, TensorPlace]:
        """Where each tensor lies, or would lie in its own file."""
        ...

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor."""
        ...


class MappedFile(Mapping[str, NDArray[Any]]):
    """The tensors of a safetensors file by name; what is not touched is not read.

    Args:
        local: The file, compared with its hash before: it must not change as long as the tensors are used.

    Attributes:
        places: Where each tensor lies.

    Raises:
        RepositoryError: If it is no safetensors file, or holds a dtype that is not read here.

    Example:

        >>> MappedFile(Path("model.safetensors"))["student.classifier.bias"].shape  # doctest: +SKIP
        (10,)
    """

    def __init__(self, local: Path) -> None:
        self.places = read_header(local).places
        self._bytes: NDArray[np.uint8] = np.memmap(local, mode="r", dtype=np.uint8)

    def __getitem__(self, name: str) -> NDArray[Any]:
        place = self.places[name]
        flat = self._bytes[place.offset : place.offset + place.length]
        return flat.view(place.format.numpy).reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Header(NamedTuple):
    """What a safetensors file says of itself.

    Args:
        places: Where each tensor lies, by name.
        metadata: Its texts, by name.
    """

    places: dict[str, TensorPlace]
    metadata: dict[str, str]


def read_header(local: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        RepositoryError: If it is none, or holds a dtype that is not read here.
    """
    size = local.stat().st_size
    try:
        with local.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(MAX_TEXT_BYTES, size):
                raise ValueError(f"its header would be {length} bytes long")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        return Header({name: _place(item, 8 + length, size) for name, item in header.items()}, dict(metadata))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise RepositoryError(f"{local} is no safetensors file that can be read: {error}") from error


def _place(item: Mapping[str, Any], start: int, size: int) -> TensorPlace:
    dtype, shape, (begin, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
    if dtype not in FORMATS:
        raise ValueError(f"it holds a tensor of dtype {dtype!r:.20}, expected one of {', '.join(FORMATS)}")
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    if not whole or end - begin != math.prod(shape) * np.dtype(FORMATS[dtype].numpy).itemsize or start + end > size:
        raise ValueError(f"a tensor of shape {list(shape)!r:.100} cannot lie at bytes {begin!r:.20} to {end!r:.20}")
    return TensorPlace(dtype, shape, start + begin, end - begin)
