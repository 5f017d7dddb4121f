"""The two files of a block in low precision: its matrices as one compressed stream of each kind of bytes.

A file holds `planes.q` (the whole numbers of all matrices, in the order of their names) and `planes.scales`, and what
is no matrix as it is; its metadata say what the matrices are. The other one holds the residual's bytes, `planes.0` the
lowest. One tensor of a kind, because the places of many small ones cost more than they say. Streams are read and merged
in pieces, straight into the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RepositoryError
from .mapped import CODES, FORMATS, TensorPlace, read_header
from .splitting import KINDS, LEVELS, Scratch, Words, merge, quantise, residual, scaled

Q_PLANE, SCALES = "planes.q", "planes.scales"
_MATRICES = "matrices"
# Level 1 was smaller than 3 and 9 on all networks that were tried: what is left is entropy, no repetition.
_LEVEL = 1
# Values worked on at a time: they stay in the processor's cache.
_PIECE = 1 << 16
# A matrix of fewer columns gains nothing: each row has a scale.
_NARROWEST = 8
# What a stream may ask for in memory; level 1 asks for half of a MiB.
_WINDOW = 1 << 23
# Values of a block, if nothing else says how many there may be: what a file claims is made before it is read.
_LARGEST = 1 << 31

Arrays = dict[str, NDArray[Any]]


class Packed(NamedTuple):
    """The two files of a block.

    Args:
        low: The tensors of the one of low precision, by name.
        metadata: What that one says of itself.
        rest: The tensors of the one that makes it exact.
    """

    low: Arrays
    metadata: dict[str, str]
    rest: Arrays


def residual_names(dtype: str) -> list[str]:
    """The names of the residual's planes in a dtype."""
    return [f"planes.{number}" for number in range(len(KINDS[dtype].planes))]


def matrix(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The rows and columns of a floating tensor as a matrix, a scale for each row; None if it is stored as it is."""
    # Position embeddings have a batch of one before them.
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    columns = math.prod(shape[1:])
    return (shape[0], columns) if len(shape) > 1 and columns >= _NARROWEST else None


def describe(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The metadata of a file of low precision: its matrices by name, in the order in which they are packed.

    Args:
        shapes: The shapes of the block's floating tensors.
    """
    found = {name: shapes[name] for name in sorted(shapes) if matrix(shapes[name]) is not None}
    return {_MATRICES: json.dumps(found, separators=(",", ":"))}


def read_matrices(local: Path, metadata: Mapping[str, str], largest: int = _LARGEST) -> dict[str, tuple[int, ...]]:
    """The shapes of the matrices of a file of low precision, by name, in the order in which they are packed.

    Args:
        local: The file, for the error.
        metadata: Its metadata.
        largest: How many values they may have together.

    Raises:
        RepositoryError: If they are not what `describe` says.
    """
    try:
        found = {name: tuple(shape) for name, shape in json.loads(metadata[_MATRICES]).items()}
        sound = all(type(size) is int and size > 0 for shape in found.values() for size in shape)
        if not sound or any(matrix(shape) is None for shape in found.values()) or list(found) != sorted(found):
            raise ValueError("its matrices are none, or not in order")
        if (values := sum(map(math.prod, found.values()))) > largest:
            raise ValueError(f"its matrices would have {values} values, there can be {largest} at most")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RepositoryError(f"{local} is no file of low precision: {type(error).__name__}: {error}") from error
    return found


def pack(given: Mapping[str, NDArray[Any]], dtype: str, bits: int) -> Packed:
    """Split the tensors of a block, each proved to come back bit for bit.

    Args:
        given: The tensors by name, floating ones as their bits (`Words`).
        dtype: The dtype of the floating ones.
        bits: 8 or 4.

    Raises:
        RuntimeError: If a tensor does not come back.
    """
    kind = KINDS[dtype]
    metadata = describe({name: array.shape for name, array in given.items() if array.dtype == kind.word})
    sizes = {name: size for name in sorted(given) if (size := _size(given[name], dtype)) is not None}
    streams = [_Compressor() for _ in range(1 + len(kind.planes))]
    scales: list[NDArray[np.float32]] = []
    scratch = Scratch()
    for name, size in sizes.items():
        words = given[name].reshape(size)
        for piece in _pieces(*size):
            q, scale = quantise(words[piece], dtype, LEVELS[bits])
            coarse = np.empty_like(words[piece])
            scaled(q, scale, dtype, coarse, scratch)
            planes = residual(words[piece], coarse, dtype)
            merge(coarse, [plane.view(np.uint8) for plane in planes], dtype, scratch)
            if not np.array_equal(coarse, words[piece]):
                raise RuntimeError(f"{name!r} did not come back bit for bit from its low precision")
            scales.append(scale.reshape(-1))
            for stream, plane in zip(streams, (q, *planes), strict=True):
                stream.write(plane)
    q_plane, *rest = (stream.close() for stream in streams)
    low = {name: array for name, array in given.items() if name not in sizes}
    low |= {Q_PLANE: q_plane, SCALES: np.concatenate(scales) if scales else np.empty(0, np.float32)}
    return Packed(low, metadata, dict(zip(residual_names(dtype), rest, strict=True)))


def coarsen(words: Words, dtype: str, bits: int) -> Words | None:
    """The low precision of one tensor, as bits of its dtype; None of what is no matrix, and stays as it is.

    Args:
        words: Its bits.
        dtype: The dtype that they are of.
        bits: 8 or 4.
    """
    size = matrix(words.shape)
    if size is None:
        return None
    found = np.empty_like(words)
    flat, given = found.reshape(size), words.reshape(size)
    scratch = Scratch()
    for rows in _pieces(*size):
        q, scales = quantise(given[rows], dtype, LEVELS[bits])
        scaled(q, scales, dtype, flat[rows], scratch)
    return found


def unpack(quantised: Path, refinement: Path | None, dtype: str, largest: int = _LARGEST) -> Arrays:
    """The tensors of a block by name, floating ones as their bits.

    Args:
        quantised: The file of low precision, compared with its hash before.
        refinement: The file that makes it exact; without it, the low precision itself.
        dtype: The dtype of the floating ones.
        largest: How many values its matrices may have together: however far a stream would expand, no more is made.

    Raises:
        RepositoryError: If a file is not what it must be.
    """
    kind = KINDS[dtype]
    with ExitStack() as opened:
        low = opened.enter_context(_opened(quantised))
        shapes = read_matrices(quantised, low.metadata, largest)
        streams = [low.stream(Q_PLANE)]
        if refinement is not None:
            rest = opened.enter_context(_opened(refinement))
            streams += [rest.stream(name) for name in residual_names(dtype)]
        # 1. What is no matrix, as it is.
        found: Arrays = {name: low.read(name) for name in low.places if name not in (Q_PLANE, SCALES)}
        found = {name: a.view(kind.word) if a.dtype.kind != "i" else a for name, a in found.items()}
        # 2. The matrices, piece by piece.
        scales, done, scratch = low.read(SCALES), 0, Scratch()
        sizes = {name: size for name, shape in shapes.items() if (size := matrix(shape)) is not None}
        if scales.dtype != np.float32 or scales.shape != (sum(rows for rows, _ in sizes.values()),):
            raise RepositoryError(f"{quantised}: {SCALES!r} must be float32, one for each row")
        for name, size in sizes.items():
            found[name] = np.empty(shapes[name], kind.word)
            flat = found[name].reshape(size)
            for piece in _pieces(*size):
                words = flat[piece]
                q = streams[0].take(words.size).view(np.int8).reshape(words.shape)
                scaled(q, scales[done : done + len(q), None], dtype, words, scratch)
                done += len(q)
                planes = [s.take(words.size * w) for s, w in zip(streams[1:], kind.planes, strict=False)]
                if planes:
                    merge(words, planes, dtype, scratch)
        for stream in streams:
            stream.check_end()
    return found


class UnpackedFile(Mapping[str, NDArray[Any]]):
    """The tensors of a block that was in low precision, or still is, as if they were mapped.

    Args:
        quantised: As in `unpack`.
        refinement: As in `unpack`.
        dtype: As in `unpack`.
        size: How many bytes the block has.

    Attributes:
        places: What each tensor is; it lies nowhere.
    """

    def __init__(self, quantised: Path, refinement: Path | None, dtype: str, size: int) -> None:
        code, largest = CODES[dtype], size // np.dtype(KINDS[dtype].word).itemsize
        self._arrays = {
            name: array if array.dtype.kind == "i" else array.view(FORMATS[code].numpy)
            for name, array in unpack(quantised, refinement, dtype, largest).items()
        }
        self.places = {
            name: TensorPlace(code if array.dtype != np.int64 else "I64", array.shape, 0, array.nbytes)
            for name, array in self._arrays.items()
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _zstandard() -> ModuleType:
    # A repository without a tier needs none.
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("blocks in low precision need zstandard: pip install zstandard", name="zstandard") from error
    return zstandard


class _Compressor:
    """One stream of bytes, compressed as it comes, with a checksum at its end."""

    def __init__(self) -> None:
        self._stream = _zstandard().ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self._parts: list[bytes] = []

    def write(self, plane: NDArray[Any]) -> None:
        self._parts.append(self._stream.compress(plane.data.cast("B")))

    def close(self) -> NDArray[np.uint8]:
        content = b"".join([*self._parts, self._stream.flush()])
        # Compares what comes out with the checksum.
        for _ in _zstandard().ZstdDecompressor(max_window_size=_WINDOW).read_to_iter(content):
            pass
        return np.frombuffer(content, np.uint8)


class _OpenFile:
    """A safetensors file that is read in pieces: nothing of it is mapped, so that it takes no memory of its own."""

    def __init__(self, local: Path, file: BinaryIO) -> None:
        self.local, self._file = local, file
        self.places, self.metadata = read_header(local)

    def place(self, name: str) -> TensorPlace:
        if name not in self.places:
            raise RepositoryError(f"{self.local} lacks tensor {name!r}")
        return self.places[name]

    def bytes_at(self, offset: int, size: int) -> bytes:
        # Not `os.pread`, which Windows lacks.
        self._file.seek(offset)
        return self._file.read(size)

    def read(self, name: str) -> NDArray[Any]:
        """The values of a tensor."""
        place = self.place(name)
        content = bytearray(self.bytes_at(place.offset, place.length))
        return np.frombuffer(content, place.format.numpy).reshape(place.shape)

    def stream(self, name: str) -> _Stream:
        return _Stream(self, name)


class _Stream:
    """A compressed tensor of a file, decompressed as it is taken."""

    def __init__(self, file: _OpenFile, name: str) -> None:
        self._file, self._name = file, name
        place = file.place(name)
        self._at, self._end = place.offset, place.offset + place.length
        self._taken = np.empty(0, np.uint8)
        self._reader = (
            _zstandard()
            .ZstdDecompressor(max_window_size=_WINDOW)
            .stream_reader(
                self,  # type: ignore[arg-type]  # it asks for `read` alone
                read_size=1 << 17,
            )
        )

    def read(self, size: int = -1) -> bytes:
        """The next compressed bytes: what the decompressor asks for."""
        found = self._file.bytes_at(self._at, min(size, self._end - self._at) if size >= 0 else self._end - self._at)
        self._at += len(found)
        return found

    def take(self, size: int) -> NDArray[np.uint8]:
        """The next bytes, until more are taken.

        Raises:
            RepositoryError: If there are fewer, or they were not compressed by zstd.
        """
        if self._taken.size < size:
            self._taken = np.empty(size, np.uint8)
        found, done = self._taken[:size], 0
        while done < size:
            count = self._decompressed(found[done:])
            if not count:
                raise RepositoryError(f"{self._file.local}: {self._name!r} ends too soon")
            done += count
        return found

    def check_end(self) -> None:
        """Refuse what goes on after the last value.

        Raises:
            RepositoryError: If it does.
        """
        if self._decompressed(np.empty(1, np.uint8)):
            raise RepositoryError(f"{self._file.local}: {self._name!r} is longer than its tensors")

    def _decompressed(self, into: NDArray[np.uint8]) -> int:
        try:
            return self._reader.readinto(into.data)
        except _zstandard().ZstdError as error:
            raise RepositoryError(f"{self._file.local}: {self._name!r} is not what zstd has made: {error}") from error


@contextmanager
def _opened(local: Path) -> Iterator[_OpenFile]:
    with local.open("rb") as file:
        yield _OpenFile(local, file)


def _size(array: NDArray[Any], dtype: str) -> tuple[int, int] | None:
    return matrix(array.shape) if array.dtype == KINDS[dtype].word else None


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _PIECE // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
