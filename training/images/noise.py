"""Random numbers that belong to an image at a step.

A generator's numbers depend on what was drawn before: on the batch's order, on the number of processes, on where a
run was resumed. These depend on their keys alone. They are made by whole-number arithmetic on the tensor's device,
so they are the same everywhere and cost no copy.

Notation: B images.
"""

from __future__ import annotations

import torch

# splitmix64: G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
# A float32 holds 24 bits exactly.
_BITS = 24


def uniforms(sample_ids: torch.Tensor, count: int, *keys: int) -> torch.Tensor:
    """Numbers that are uniform in [0, 1), and a function of their keys.

    Args:
        sample_ids: Which image, (B,) int64, of any device.
        count: How many numbers an image needs. The first ones do not depend on it.
        *keys: Whole numbers that tell draws apart: a seed, a step, a purpose.

    Returns:
        (count, B) float32 on the device of the ids, all multiples of 2^-24.
    """
    key = 0
    for number in keys:
        key = _mix((key + _GOLDEN + number) & _WORD)
    start = _mix_all(sample_ids + _signed(key))
    steps = [_signed((_GOLDEN * (number + 1)) & _WORD) for number in range(count)]
    words = _mix_all(start + torch.tensor(steps, dtype=torch.int64, device=sample_ids.device)[:, None])
    return _shift_right(words, 64 - _BITS).float() * 2.0**-_BITS


def ring(order: torch.Tensor) -> torch.Tensor:
    """Another place for each of n: the one before it in an order whose ends are joined, so none keeps its own.

    Args:
        order: All n places, (n,) int64, of any device.

    Returns:
        (n,) int64; of a single place, itself.
    """
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def _mix_all(words: torch.Tensor) -> torch.Tensor:
    """The same as `_mix` of each: int64 wraps as uint64 does, for which torch has few operations."""
    words = (words ^ _shift_right(words, 30)) * _signed(_FIRST)
    words = (words ^ _shift_right(words, 27)) * _signed(_SECOND)
    return words ^ _shift_right(words, 31)


def _shift_right(words: torch.Tensor, bits: int) -> torch.Tensor:
    # torch copies the sign bit in.
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
