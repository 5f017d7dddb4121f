"""From waveforms to what a network of sounds takes, in numpy: what transformers' feature extractors make of them.

Those of wav2vec 2.0 and of AST are equalled; of the latter the one in numpy, which transformers takes where torchaudio
is not installed. Others are refused by name.

Notation: B sounds; a waveform is (samples,) float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pwl_hf.modeling.errors import InputError
from pwl_hf.runtime.sounds import Waveform

Arrays = Mapping[str, NDArray[Any]]

# Of AST, in samples: a frame, from one to the next, and the discrete Fourier transform of one.
_FRAME, _HOP, _FOURIER = 400, 160, 512
_PREEMPHASIS, _LEAST = 0.97, 1.192092955078125e-07
_MOST_RATE = 1_000_000


class FeatureExtractor(Protocol):
    """Makes inputs of waveforms."""

    @property
    def sampling_rate(self) -> int:
        """The rate of waveforms, in samples a second."""
        ...

    def batches(self, named: Sequence[tuple[str, Waveform]]) -> list[Arrays]:
        """What the networks take, in as few batches as give each sound what it gets alone.

        Args:
            named: What errors call each sound, and its waveform.
        """
        ...


def extractor_of(config: Mapping[str, Any]) -> FeatureExtractor:
    """The feature extractor that a `preprocessor_config.json` describes.

    Args:
        config: What the file says.

    Raises:
        ValueError: If a type or a value is not supported, named.
    """
    kind = str(config.get("feature_extractor_type"))
    if kind not in _EXTRACTORS:
        raise ValueError(
            f"preprocessor_config.json has the feature_extractor_type {kind!r:.100}, and the runtime has "
            f"{' and '.join(_EXTRACTORS)}"
        )
    if config.get("padding_side", "right") != "right":
        raise ValueError(
            f"preprocessor_config.json: padding_side is {config['padding_side']!r:.100}, it must be 'right'"
        )
    if config.get("feature_size", 1) != 1:
        raise ValueError(f"preprocessor_config.json: feature_size is {config['feature_size']!r:.100}, it must be 1")
    found: FeatureExtractor = _EXTRACTORS[kind](config)
    return found


@dataclass(frozen=True)
class Waveforms:
    """As transformers' `Wav2Vec2FeatureExtractor`: waveforms as they are, or of mean 0 and variance 1.

    Args:
        sampling_rate: The rate of waveforms.
        normalizes: Whether they are normalised.
        padding_value: What stands behind a sound in a batch.
        gives_mask: Whether a batch has a mask; without one each sound runs alone, since padding would count.
    """

    sampling_rate: int
    normalizes: bool
    padding_value: float
    gives_mask: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Waveforms:
        """Of the fields of a file."""
        return cls(
            sampling_rate=_rate(config),
            normalizes=bool(config.get("do_normalize", True)),
            padding_value=_number(config, "padding_value", 0.0),
            gives_mask=bool(config.get("return_attention_mask", False)),
        )

    def batches(self, named: Sequence[tuple[str, Waveform]]) -> list[Arrays]:
        """See `FeatureExtractor`."""
        waves = [self._normalised(wave) for _, wave in named]
        return [self._batch(waves)] if self.gives_mask else [self._batch([wave]) for wave in waves]

    def _batch(self, waves: Sequence[Waveform]) -> Arrays:
        shape = len(waves), max(len(wave) for wave in waves)
        values, mask = np.full(shape, self.padding_value, np.float32), np.zeros(shape, np.int64)
        for row, wave in enumerate(waves):
            values[row, : len(wave)], mask[row, : len(wave)] = wave, 1
        return {"input_values": values, "attention_mask": mask}

    def _normalised(self, wave: Waveform) -> Waveform:
        return (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if self.normalizes else wave


@dataclass(frozen=True, eq=False)
class Spectrograms:
    """As transformers' `ASTFeatureExtractor`: logarithms of mel filters over frames, cut or filled up to one length.

    Args:
        sampling_rate: The rate of waveforms.
        length: Frames of a spectrogram.
        filters: (frequencies, mel bins).
        mean: What is taken off, if it is normalised.
        std: Half of what it is then divided by.
        normalizes: Whether it is normalised.
    """

    sampling_rate: int
    length: int
    filters: NDArray[np.float64]
    mean: float
    std: float
    normalizes: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Spectrograms:
        """Of the fields of a file."""
        rate, bins = _rate(config), _whole(config, "num_mel_bins", 128)
        return cls(
            sampling_rate=rate,
            length=_whole(config, "max_length", 1024),
            filters=_mel_filters(bins, rate),
            mean=_number(config, "mean", -4.2677393),
            std=_number(config, "std", 4.5689974),
            normalizes=bool(config.get("do_normalize", True)),
        )

    def batches(self, named: Sequence[tuple[str, Waveform]]) -> list[Arrays]:
        """See `FeatureExtractor`; all spectrograms are of one length."""
        return [{"input_values": np.stack([self._spectrogram(wave, name) for name, wave in named])}]

    def _spectrogram(self, wave: Waveform, name: str) -> NDArray[np.float32]:
        if len(wave) < _FRAME:
            raise InputError(f"{name} has {len(wave)} samples, fewer than a frame of {_FRAME}: give a longer one")
        # 1. Frames without their mean, of which high frequencies are raised.
        frames = np.lib.stride_tricks.sliding_window_view(wave, _FRAME)[::_HOP][: self.length].astype(np.float64)
        frames -= frames.mean(axis=1, keepdims=True)
        raised = frames.copy()
        raised[:, 1:] -= _PREEMPHASIS * frames[:, :-1]
        raised[:, 0] *= 1 - _PREEMPHASIS
        # 2. Their power by frequency, and by filter.
        spectrum = np.fft.rfft(raised * np.hanning(_FRAME), _FOURIER).astype(np.complex64)
        power = np.abs(spectrum, dtype=np.float64) ** 2
        found = np.zeros((self.length, self.filters.shape[1]), np.float32)
        found[: len(frames)] = np.log(np.maximum(_LEAST, power @ self.filters))
        return ((found - self.mean) / (2 * self.std)).astype(np.float32) if self.normalizes else found


def _mel_filters(bins: int, rate: int) -> NDArray[np.float64]:
    """Triangles over the mel scale of Kaldi, from 20 Hz to half the rate."""

    def mel(frequency: Any) -> Any:
        return 1127.0 * np.log(1.0 + frequency / 700.0)

    corners = np.linspace(mel(20.0), mel(float(rate // 2)), bins + 2)
    frequencies = mel(rate / _FOURIER * np.arange(_FOURIER // 2 + 1))
    slopes = corners[None] - frequencies[:, None]
    widths = np.diff(corners)
    return np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))


def _rate(config: Mapping[str, Any]) -> int:
    rate = _whole(config, "sampling_rate", 16000)
    if rate > _MOST_RATE:
        raise ValueError(f"preprocessor_config.json: sampling_rate is {rate}, it must be {_MOST_RATE} at most")
    return rate


def _whole(config: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = config.get(name, otherwise)
    if type(value) is not int or not 0 < value <= _MOST_RATE:
        raise ValueError(f"preprocessor_config.json: {name} is {value!r:.100}, it must be a whole number from 1 on")
    return value


def _number(config: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = config.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"preprocessor_config.json: {name} is {value!r:.100}, it must be a finite number")
    return float(value)


_EXTRACTORS: Mapping[str, Any] = {
    "Wav2Vec2FeatureExtractor": Waveforms.of,
    "ASTFeatureExtractor": Spectrograms.of,
}
