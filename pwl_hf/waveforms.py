"""From files of sounds to waveforms of one channel at a network's rate; imports neither torch nor datasets.

Files are decoded by soundfile and resampled by soxr, which the extra `audio` brings.

Notation: a waveform is (samples,) float32.
"""

from __future__ import annotations

import importlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pwl_hf.modeling.errors import InputError

Waveform = NDArray[np.float32]


def read_waveform(file: str | BinaryIO, name: str, sampling_rate: int) -> Waveform:
    """A sound at a rate, the mean of its channels.

    Args:
        file: Its path, or its file, opened.
        name: What errors call the sound.
        sampling_rate: The rate that is wanted, in samples a second.

    Raises:
        InputError: If it cannot be read, has no samples, before or after resampling, or holds NaN or infinity.
        ImportError: If what decodes or resamples is not installed.
    """
    soundfile = package("soundfile")
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    # libsndfile's errors are RuntimeErrors, and its reader's own TypeErrors.
    except Exception as error:
        raise _unreadable(name, error) from error
    return resample(check_samples(samples.mean(axis=1), name), rate, sampling_rate, name)


def waveform_length(file: str | BinaryIO, name: str, sampling_rate: int) -> int:
    """About how many samples a sound has at a rate, by its header; one at least.

    Args:
        file: As in `read_waveform`.
        name: As there.
        sampling_rate: As there.

    Raises:
        InputError: If the header cannot be read.
        ImportError: As `read_waveform`.
    """
    soundfile = package("soundfile")
    try:
        found = soundfile.info(file)
    except Exception as error:
        raise _unreadable(name, error) from error
    if found.samplerate != sampling_rate:
        _resampler(found.samplerate, sampling_rate, name)
    return max(1, int(found.frames) * sampling_rate // int(found.samplerate))


def check_samples(wave: Waveform, name: str) -> Waveform:
    """Refuse a waveform of which no network makes anything.

    Args:
        wave: The waveform, which is returned.
        name: What errors call the sound.

    Raises:
        InputError: If it has no samples, or holds NaN or infinity.
    """
    if wave.size == 0:
        raise InputError(f"{name} has no samples: give a longer one")
    if not np.isfinite(wave).all():
        raise InputError(f"{name} holds NaN or infinity: give finite samples")
    return wave


def resample(wave: Waveform, rate: int, sampling_rate: int, name: str) -> Waveform:
    """A waveform at another rate.

    Args:
        wave: The waveform.
        rate: Its rate, in samples a second.
        sampling_rate: The rate that is wanted.
        name: What errors call the sound.

    Raises:
        InputError: If no sample is left.
        ImportError: If soxr is not installed.
    """
    if rate == sampling_rate:
        return wave
    resampled: Waveform = _resampler(rate, sampling_rate, name).resample(wave, rate, sampling_rate)
    if resampled.size == 0:
        raise InputError(f"{name} has too few samples, none are left at {sampling_rate} a second: give a longer one")
    return resampled


def package(name: str, why: str = "sounds need") -> Any:
    """A package of the extra `audio`.

    Args:
        name: The package.
        why: What an error says before its name.

    Raises:
        ModuleNotFoundError: If it is not installed, or lacks its library.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise ModuleNotFoundError(
            f'{why} {name}, which is not installed: pip install "pwl-hf[audio]"', name=name
        ) from error


def _resampler(rate: int, sampling_rate: int, name: str) -> Any:
    return package(
        "soxr", f"{name} has {rate} samples a second, and the network takes {sampling_rate}: sounds of other rates need"
    )


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} cannot be read as a sound: {type(error).__name__}: {error}; soundfile reads WAV, FLAC, OGG and MP3: "
        "convert it"
    )
