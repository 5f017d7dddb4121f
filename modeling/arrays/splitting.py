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
# Scales with which each product, |q| from 1 to 127, is a normal number of float16.
_HALF_SMALLEST, _HALF_LARGEST = np.float32(2.0**-14), np.float32(2.0**9)


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


class Scratch:
    """Memory for what lies between two steps, used for piece after piece: new memory costs more than the steps do."""

    def __init__(self) -> None:
        self._bytes: list[NDArray[np.uint8]] = []

    def words(self, number: int, like: NDArray[Any], word: type[np.unsignedinteger[Any]]) -> Words:
        """Whole numbers of an array's shape, of any values; those of another number are other memory."""
        size = like.size * np.dtype(word).itemsize
        while len(self._bytes) <= number:
            self._bytes.append(np.empty(0, np.uint8))
        if self._bytes[number].size < size:
            self._bytes[number] = np.empty(size, np.uint8)
        found: Words = self._bytes[number][:size].view(word).reshape(like.shape)
        return found


def scaled(q: NDArray[np.int8], scales: Floats, dtype: str, out: Words, scratch: Scratch) -> None:
    """Write the bits of q s, rounded to the nearest value of the dtype, ties to even.

    Args:
        q: (rows, width).
        scales: (rows, 1).
        dtype: One of `KINDS`.
        out: Where they go, (rows, width), contiguous.
        scratch: What it may use.
    """
    with np.errstate(all="ignore"):
        if dtype == "float32":
            values = out.view(np.float32)
            values[...] = q
            np.multiply(values, scales, out=values)
            return
        bits = scratch.words(0, q, np.uint32)
        values = bits.view(np.float32)
        values[...] = q
        if dtype == "bfloat16":
            np.multiply(values, scales, out=values)
            _round_off(bits, 16, scratch)
            out[...] = bits
        elif np.all((scales == 0) | ((scales >= _HALF_SMALLEST) & (scales <= _HALF_LARGEST))):
            # Five times as fast as numpy's own cast. Exponents of float16 are those of float32 less 112.
            np.multiply(values, scales * np.float32(2.0**-112), out=values)
            _round_off(bits, 13, scratch)
            out[...] = bits  # without the sign, which is too far up
            signs = scratch.words(1, q, np.uint16)
            signs[...] = q.view(np.uint8) & np.uint8(0x80)
            np.left_shift(signs, np.uint16(8), out=signs)
            np.bitwise_or(out, signs, out=out)
        else:
            np.multiply(values, scales, out=values)
            out.view(np.float16)[...] = values


def _round_off(bits: Words, count: int, scratch: Scratch) -> None:
    """Take so many of the lowest bits away, to the nearest, ties to even."""
    odd = scratch.words(1, bits, np.uint32)
    np.right_shift(bits, np.uint32(count), out=odd)
    np.bitwise_and(odd, np.uint32(1), out=odd)
    np.add(bits, odd, out=bits)
    np.add(bits, np.uint32((1 << (count - 1)) - 1), out=bits)
    np.right_shift(bits, np.uint32(count), out=bits)


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


def merge(low: Words, planes: list[NDArray[np.uint8]], dtype: str, scratch: Scratch) -> None:
    """Make a low precision exact, in place.

    Args:
        low: Its bits, contiguous.
        planes: The bytes of the planes that `residual` gives.
        dtype: The dtype that they are of.
        scratch: What it may use.
    """
    kind, flat = KINDS[dtype], low.reshape(-1)
    lowest, *above = (plane.view(f"<u{width}") for width, plane in zip(kind.planes, planes, strict=True))
    # All planes but the lowest fit into two bytes: whole numbers of half the size take half the time.
    high = scratch.words(0, flat, np.uint16)
    high[...] = above[-1]
    for plane in above[-2::-1]:
        np.left_shift(high, np.uint16(8), out=high)
        np.add(high, plane, out=high)
    shift = 8 * kind.planes[0]
    if above_bias := kind.bias >> shift:
        np.subtract(high, np.uint16(above_bias), out=high)
    if kind.word is not np.uint16:
        high, narrow = scratch.words(1, flat, kind.word), high
        high[...] = narrow
    np.left_shift(high, kind.word(shift), out=high)
    np.add(flat, high, out=flat)
    np.add(flat, lowest, out=flat)
    if left := kind.bias % (1 << shift):
        np.subtract(flat, kind.word(left), out=flat)


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
