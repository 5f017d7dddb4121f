"""The sounds that a caller may give, each as a waveform of one channel at a network's rate.

Notation: a waveform is (samples,) float32.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwl_hf.modeling.errors import InputError
from pwl_hf.runtime.paths import path_of
from pwl_hf.waveforms import Waveform, check_samples, read_waveform, resample

SoundInput = NDArray[Any] | str | os.PathLike[str] | bytes | Mapping[str, Any]
Sounds = SoundInput | Sequence[SoundInput]

_KINDS = (
    "arrays at the network's rate, paths of files, the bytes of files, or mappings with 'array' (or 'raw') and "
    "'sampling_rate'"
)
# What a mapping may have besides: `datasets` tells where a sound comes from.
_FIELDS = {"array", "raw", "sampling_rate", "path"}


def is_one(sounds: Sounds) -> bool:
    """Whether this is a single sound, rather than several."""
    return isinstance(sounds, str | os.PathLike | bytes | bytearray | Mapping) or (
        isinstance(sounds, np.ndarray) and sounds.ndim < 2
    )


def read_sounds(sounds: Sounds, sampling_rate: int) -> Iterator[tuple[str, Waveform]]:
    """Each sound with what errors call it; one is decoded at a time.

    Files, and arrays with a rate, are brought to the network's; an array without one is taken as it is.

    Args:
        sounds: One sound or several: see `Sounds`.
        sampling_rate: The network's rate, in samples a second.

    Raises:
        InputError: If there is none, one is of another kind, is silent as it has no samples, holds NaN or infinity, or
            cannot be read: named by its number from 0, and its path.
        ImportError: If what decodes or resamples is not installed.
    """
    if is_one(sounds):
        yield _read(sounds, "the sound", sampling_rate)
        return
    if not isinstance(sounds, Sequence | np.ndarray):
        raise InputError(f"sounds must be {_KINDS}; one or a sequence, got {type(sounds).__name__}")
    if len(sounds) == 0:
        raise InputError("there are no sounds: give at least one")
    for number, sound in enumerate(sounds):
        yield _read(sound, f"sound {number}", sampling_rate)


def _read(sound: Any, name: str, sampling_rate: int) -> tuple[str, Waveform]:
    if isinstance(sound, Mapping):
        array, rate = _array_and_rate(sound, name)
        return name, resample(_checked(array, name), rate, sampling_rate, name)
    if isinstance(sound, np.ndarray):
        return name, _checked(sound, name)
    if isinstance(sound, bytes | bytearray):
        return name, read_waveform(io.BytesIO(sound), name, sampling_rate)
    path = path_of(sound, name, f"sounds are {_KINDS}", "its samples")
    name = f"{name}, {path!r},"
    try:
        with open(path, "rb") as opened:
            return name, read_waveform(opened, name, sampling_rate)
    except OSError as error:
        raise InputError(f"{name} cannot be opened: {error}") from error


def _array_and_rate(sound: Mapping[str, Any], name: str) -> tuple[Any, int]:
    given = [key for key in ("array", "raw") if key in sound]
    if len(given) != 1 or "sampling_rate" not in sound or not sound.keys() <= _FIELDS:
        raise InputError(
            f"{name} must have 'array' or 'raw', and 'sampling_rate', got {sorted(map(str, sound))!r:.200}"
        )
    rate = sound["sampling_rate"]
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise InputError(f"sampling_rate of {name} must be a whole number of at least 1, got {rate!r:.100}")
    try:
        return np.asarray(sound[given[0]], dtype=None if isinstance(sound[given[0]], np.ndarray) else np.float32), int(
            rate
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{given[0]} of {name} is no list of numbers: {error}") from error


def _checked(array: NDArray[Any], name: str) -> Waveform:
    if array.ndim != 1:
        raise InputError(f"{name} is an array of shape {array.shape}: give one channel, (samples,)")
    if array.dtype.kind != "f":
        raise InputError(f"{name} is an array of {array.dtype}: give floating numbers, mostly from -1 to 1")
    return np.ascontiguousarray(check_samples(array, name), dtype=np.float32)
