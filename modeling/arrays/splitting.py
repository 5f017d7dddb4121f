"""A matrix as whole numbers of few bits, and the rest that makes it exact, whatever its bits are.

With one scale a row, s = max |x| / levels, the low precision is q = round(x / s), and stands for q s. What it lacks is
a whole number, r = bits(x) - bits(q s) modulo 2^32 (2^16 of two-byte dtypes): merging adds it to the bits of the same
product. That is exact for every bit pattern, NaN and infinity included, however the product was rounded, as long as it
is one IEEE multiplication of float32 both times.

Where q is not 0, |x - q s| <= s / 2 spans 1.5 * 2^23 floats at most, and fewer the larger |q| is: of the bytes of r the
highest says nothing for 98 % of the weights, the next little, and compression takes them away. (QStore, arXiv
2505.04081, groups such residuals by q, which gains another 0.7 bits a weight here, and halves the speed of merging.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]
Floats = NDArray[np.float32]


class Kind(NamedTuple):
    """How the values of a dtype are split.

    Args:
        word: The whole numbers of its size.
        planes: How many bytes of the residual go into each plane, the lowest first.
        bias: Added to the residual, so that its highest byte is the same nearly everywhere.
    """

    word: type[np.unsignedinteger[Any]]
    planes: tuple[int, ...]
    bias: int


# The two lowest bytes of a float32's residual are random, and one plane.
KINDS = {
    "float32": Kind(np.uint32, (2, 1, 1), 1 << 23),
    "bfloat16": Kind(np.uint16, (1, 1), 1 << 7),
    "float16": Kind(np.uint16, (1, 1), 1 << 7),
}
# The largest |q| of each number of bits.
LEVELS = {8: 127, 4: 7}
# Rows of smaller scales have q = 0: no product may be a denormal, which some set the processor to round to 0.
_SMALLEST = np.float32(2.0**-100)


def quantise(words: Words, dtype: str, levels: int) -> tuple[NDArray[np.int8], Floats]:
    """The low precision of a matrix.

    Args:
        words: Its bits, (rows, width).
        dtype: The dtype that they are of, one of `KINDS`.
        levels: The largest |q|.

    Returns:
        q, (rows, width), and the scales, (rows, 1). What is not finite has q = 0.
    """
    values = floats_of(words, dtype)
    values = np.where(np.isfinite(values), values, np.float32(0))
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(levels)
    scales[scales < _SMALLEST] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.rint(values / scales)
    q[~np.isfinite(q)] = 0
    return np.clip(q, -levels, levels).astype(np.int8), scales


def scaled(q: NDArray[np.int8], scales: Floats, dtype: str, out: Words) -> None:
    """Write the bits of q s.

    Args:
        q: (rows, width).
        scales: (rows, 1).
        dtype: One of `KINDS`.
        out: Where they go, (rows, width), contiguous.
    """
    if dtype == "float32":
        values = out.view(np.float32)
        values[...] = q
        np.multiply(values, scales, out=values)
        return
    values = q.astype(np.float32)
    np.multiply(values, scales, out=values)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            out.view(np.float16)[...] = values
        return
    # numpy has no bfloat16: to the nearest, ties to even.
    bits = values.view(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    np.right_shift(bits, np.uint32(16), out=bits)
    out[...] = bits


def residual(words: Words, low: Words, dtype: str) -> list[NDArray[np.unsignedinteger[Any]]]:
    """What `low` lacks of `words`, plane by plane.

    Args:
        words: The bits of a matrix.
        low: Those of its low precision, of the same shape.
        dtype: The dtype that they are of.

    Returns:
        The planes of the dtype's `Kind`, flat, of whole numbers as wide as they are.
    """
    kind = KINDS[dtype]
    rest = (words - low + kind.word(kind.bias)).reshape(-1)
    found, shift = [], 0
    for width in kind.planes:
        # The cast keeps the lowest bytes.
        found.append((rest >> kind.word(shift)).astype(f"<u{width}"))
        shift += 8 * width
    return found


def merge(low: Words, planes: list[NDArray[np.uint8]], dtype: str) -> None:
    """Make a low precision exact, in place.

    Args:
        low: Its bits, contiguous.
        planes: The bytes of the planes that `residual` gives.
        dtype: The dtype that they are of.
    """
    kind, flat, shift = KINDS[dtype], low.reshape(-1), 0
    for width, plane in zip(kind.planes, planes, strict=True):
        part = plane.view(f"<u{width}").astype(kind.word)
        if shift:
            np.left_shift(part, kind.word(shift), out=part)
        np.add(flat, part, out=flat)
        shift += 8 * width
    np.subtract(flat, kind.word(kind.bias), out=flat)


def floats_of(words: Words, dtype: str) -> Floats:
    """The values of bits, as float32.

    Args:
        words: The bits.
        dtype: The dtype that they are of.
    """
    if dtype == "float32":
        return words.view(np.float32)
    if dtype == "float16":
        return words.view(np.float16).astype(np.float32)
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
