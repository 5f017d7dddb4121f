"""From waveforms to what a network of sounds takes, in numpy: what transformers' feature extractors make of them.

Those of wav2vec 2.0, AST, Whisper and SeamlessM4T (which Wav2Vec2-BERT has) are equalled; of AST the one in numpy,
which transformers takes where torchaudio is not installed. Others are refused by name.

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
from pwl_hf.waveforms import Waveform

Arrays = Mapping[str, NDArray[Any]]

# Of Kaldi, in samples: a frame, from one to the next, and the discrete Fourier transform of one.
_FRAME, _HOP, _FOURIER = 400, 160, 512
_PREEMPHASIS, _LEAST = 0.97, 1.192092955078125e-07
# What a file may ask for: far more than networks are published for.
_MOST_RATE, _MOST_FRAMES, _MOST_BINS, _MOST_FOURIER, _MOST_SECONDS = 1_000_000, 100_000, 1024, 8192, 600


class FeatureExtractor(Protocol):
    """Makes inputs of waveforms."""

    @property
    def sampling_rate(self) -> int:
        """The rate of waveforms, in samples a second."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what becomes of one sound, -1 for a length that is the sound's own."""
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
            f"{', '.join(_EXTRACTORS)}"
        )
    if config.get("padding_side", "right") != "right":
        raise ValueError(
            f"preprocessor_config.json: padding_side is {config['padding_side']!r:.100}, it must be 'right'"
        )
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
    shape = (-1,)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Waveforms:
        """Of the fields of a file."""
        _check_feature_size(config)
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
        values, mask = _padded(waves, max(len(wave) for wave in waves), self.padding_value)
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
        _check_feature_size(config)
        rate, bins = _rate(config), _whole(config, "num_mel_bins", 128, _MOST_BINS)
        return cls(
            sampling_rate=rate,
            length=_whole(config, "max_length", 1024, _MOST_FRAMES),
            filters=_kaldi_filters(bins, rate),
            mean=_number(config, "mean", -4.2677393),
            std=_number(config, "std", 4.5689974),
            normalizes=bool(config.get("do_normalize", True)),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """See `FeatureExtractor`."""
        return self.length, self.filters.shape[1]

    def batches(self, named: Sequence[tuple[str, Waveform]]) -> list[Arrays]:
        """See `FeatureExtractor`; all spectrograms are of one length."""
        return [{"input_values": np.stack([self._spectrogram(wave, name) for name, wave in named])}]

    def _spectrogram(self, wave: Waveform, name: str) -> NDArray[np.float32]:
        # More frames than there is room for need not be made.
        made = _kaldi(wave[: _FRAME + (self.length - 1) * _HOP], np.hanning(_FRAME), self.filters, name)
        found = np.zeros((self.length, self.filters.shape[1]), np.float32)
        found[: len(made)] = made
        return ((found - self.mean) / (2 * self.std)).astype(np.float32) if self.normalizes else found


@dataclass(frozen=True, eq=False)
class LogMelSpectrograms:
    """As transformers' `WhisperFeatureExtractor`: sounds cut or filled up to one length, and then their spectrograms.

    Args:
        sampling_rate: The rate of waveforms.
        length: Samples of a sound.
        fourier: Samples of a frame.
        hop: From one frame to the next, in samples.
        filters: (frequencies, mel bins).
        padding_value: What stands behind a sound that is shorter.
    """

    sampling_rate: int
    length: int
    fourier: int
    hop: int
    filters: NDArray[np.float64]
    padding_value: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LogMelSpectrograms:
        """Of the fields of a file."""
        rate, fourier = _rate(config), _whole(config, "n_fft", 400, _MOST_FOURIER)
        if _number(config, "dither", 0.0) != 0:
            raise ValueError(
                f"preprocessor_config.json: dither is {config['dither']!r:.100}, it must be 0: noise gives each call "
                "other features"
            )
        length = _whole(config, "chunk_length", 30, _MOST_SECONDS) * rate
        if length <= fourier // 2:
            raise ValueError(
                f"preprocessor_config.json: n_fft is {fourier}, more than twice a sound of {length} samples"
            )
        return cls(
            sampling_rate=rate,
            length=length,
            fourier=fourier,
            hop=_whole(config, "hop_length", 160, length),
            filters=_slaney_filters(_whole(config, "feature_size", 80, _MOST_BINS), rate, fourier),
            padding_value=_number(config, "padding_value", 0.0),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """See `FeatureExtractor`."""
        return self.filters.shape[1], (self.length - self.fourier % 2) // self.hop

    def batches(self, named: Sequence[tuple[str, Waveform]]) -> list[Arrays]:
        """See `FeatureExtractor`; all spectrograms are of one length."""
        return [{"input_features": np.stack([self._spectrogram(wave) for _, wave in named])}]

    def _spectrogram(self, wave: Waveform) -> NDArray[np.float32]:
        padded = np.full(self.length, self.padding_value, np.float32)
        padded[: len(wave)] = wave[: self.length]
        # Each frame around its own moment, of which the last is left out.
        frames = _frames(np.pad(padded, self.fourier // 2, mode="reflect"), self.fourier, self.hop)[: self.shape[1]]
        window = np.hanning(self.fourier + 1)[:-1]
        found = np.log10(np.maximum(1e-10, self.filters.T @ _power(frames * window, self.fourier).T)).astype(np.float32)
        found = np.maximum(found, found.max() - 8.0)
        return ((found + 4.0) / 4.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class SpeechFeatures:
    """As transformers' `SeamlessM4TFeatureExtractor`: logarithms of mel filters, normalised, several frames in one.

    Args:
        sampling_rate: The rate of waveforms.
        stride: Frames that become one.
        filters: (frequencies, mel bins).
        padding_value: What stands behind a sound in a batch.
        gives_mask: Whether a batch has a mask; without one each sound runs alone, since padding would count.
    """

    sampling_rate: int
    stride: int
    filters: NDArray[np.float64]
    padding_value: float
    gives_mask: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> SpeechFeatures:
        """Of the fields of a file."""
        rate, stride = _rate(config), _whole(config, "stride", 2, _MOST_BINS)
        for name, value in (("stride", stride), ("feature_size", _whole(config, "feature_size", 80))):
            # transformers makes no mask of a stride of 1, and pads features of a single number as waveforms.
            if value == 1:
                raise ValueError(f"preprocessor_config.json: {name} is 1, it must be 2 or more")
        return cls(
            sampling_rate=rate,
            stride=stride,
            filters=_kaldi_filters(_whole(config, "num_mel_bins", 80, _MOST_BINS), rate),
            padding_value=_number(config, "padding_value", 0.0),
            gives_mask=bool(config.get("return_attention_mask", True)),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """See `FeatureExtractor`."""
        return -1, self.stride * self.filters.shape[1]

    def batches(self, named: Sequence[tuple[str, Waveform]]) -> list[Arrays]:
        """See `FeatureExtractor`."""
        made = [self._features(wave, name) for name, wave in named]
        return [self._batch(made)] if self.gives_mask else [self._batch([features]) for features in made]

    def _features(self, wave: Waveform, name: str) -> NDArray[np.float32]:
        """(frames, mel bins), each bin of mean 0 and variance 1."""
        # One frame has no variance, and what is shorter than a stride is dropped.
        frames = max(2, self.stride)
        if len(wave) < (least := _FRAME + (frames - 1) * _HOP):
            raise InputError(f"{name} has {len(wave)} samples, fewer than {frames} frames, {least}: give a longer one")
        # As if of 16 bits, as Kaldi has them.
        found = _kaldi(wave * 2**15, np.hanning(_FRAME) ** 0.85, self.filters, name)
        normalised: NDArray[np.float32] = (found - found.mean(0)) / np.sqrt(found.var(0, ddof=1) + 1e-7)
        return normalised

    def _batch(self, made: Sequence[NDArray[np.float32]]) -> Arrays:
        # As in transformers: filled up to an even number of frames, of which whole strides are kept.
        longest = max(len(features) for features in made)
        frames, bins = longest + longest % 2, self.filters.shape[1]
        values, mask = _padded(made, frames, self.padding_value)
        length = frames // self.stride
        values = values[:, : length * self.stride].reshape(len(made), length, bins * self.stride)
        mask = mask[:, 1 : length * self.stride : self.stride]
        return {"input_features": values, "attention_mask": mask if self.gives_mask else np.ones_like(mask)}


def _padded(
    made: Sequence[NDArray[np.float32]], length: int, padding_value: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What was made of several sounds, (sounds, length, ...), filled up at the end; and which of it is no filling."""
    values = np.full((len(made), length, *made[0].shape[1:]), padding_value, np.float32)
    mask = np.zeros((len(made), length), np.int64)
    for row, found in enumerate(made):
        values[row, : len(found)], mask[row, : len(found)] = found, 1
    return values, mask


def _kaldi(wave: Waveform, window: NDArray[np.float64], filters: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    """Logarithms of mel filters over frames, (frames, mel bins), as Kaldi makes them."""
    if len(wave) < _FRAME:
        raise InputError(f"{name} has {len(wave)} samples, fewer than a frame of {_FRAME}: give a longer one")
    # 1. Frames without their mean, of which high frequencies are raised.
    frames = _frames(wave, _FRAME, _HOP)
    frames = frames - frames.mean(axis=1, keepdims=True)
    raised = frames.copy()
    raised[:, 1:] -= _PREEMPHASIS * frames[:, :-1]
    raised[:, 0] *= 1 - _PREEMPHASIS
    # 2. Their power by frequency, and by filter; in transformers' order, for the last bits of what is constant.
    found = np.log(np.maximum(_LEAST, filters.T @ _power(raised * window, _FOURIER).T))
    return found.astype(np.float32).T


def _frames(wave: NDArray[Any], length: int, hop: int) -> NDArray[np.float64]:
    return np.lib.stride_tricks.sliding_window_view(wave, length)[::hop].astype(np.float64)


def _power(frames: NDArray[np.float64], fourier: int) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(frames, fourier).astype(np.complex64)
    power: NDArray[np.float64] = np.abs(spectrum, dtype=np.float64) ** 2
    return power


def _kaldi_filters(bins: int, rate: int) -> NDArray[np.float64]:
    """Triangles over the mel scale of Kaldi, from 20 Hz to half the rate, (frequencies, bins)."""

    def mel(frequency: Any) -> Any:
        return 1127.0 * np.log(1.0 + frequency / 700.0)

    corners = np.linspace(mel(20.0), mel(float(rate // 2)), bins + 2)
    return _triangles(mel(rate / _FOURIER * np.arange(_FOURIER // 2 + 1)), corners)


def _slaney_filters(bins: int, rate: int, fourier: int) -> NDArray[np.float64]:
    """Triangles over frequencies up to 8 kHz, of equal area, (frequencies, bins); the mel scale is Slaney's.

    It is linear up to 1 kHz, which is 15 mel, and logarithmic from there.
    """
    step = np.log(6.4) / 27.0
    mels = np.linspace(0.0, 15.0 + np.log(8000.0 / 1000.0) / step, bins + 2)
    corners = np.where(mels < 15.0, 200.0 * mels / 3.0, 1000.0 * np.exp(step * (mels - 15.0)))
    filters = _triangles(np.linspace(0.0, rate // 2, 1 + fourier // 2), corners)
    return filters * (2.0 / (corners[2:] - corners[:-2]))


def _triangles(frequencies: NDArray[np.float64], corners: NDArray[np.float64]) -> NDArray[np.float64]:
    slopes = corners[None] - frequencies[:, None]
    widths = np.diff(corners)
    return np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))


def _check_feature_size(config: Mapping[str, Any]) -> None:
    if config.get("feature_size", 1) != 1:
        raise ValueError(f"preprocessor_config.json: feature_size is {config['feature_size']!r:.100}, it must be 1")


def _rate(config: Mapping[str, Any]) -> int:
    return _whole(config, "sampling_rate", 16000)


def _whole(config: Mapping[str, Any], name: str, otherwise: int, most: int = _MOST_RATE) -> int:
    value = config.get(name, otherwise)
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(
            f"preprocessor_config.json: {name} is {value!r:.100}, it must be a whole number from 1 to {most}"
        )
    return value


def _number(config: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = config.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"preprocessor_config.json: {name} is {value!r:.100}, it must be a finite number")
    return float(value)


_EXTRACTORS: Mapping[str, Any] = {
    "Wav2Vec2FeatureExtractor": Waveforms.of,
    "ASTFeatureExtractor": Spectrograms.of,
    "WhisperFeatureExtractor": LogMelSpectrograms.of,
    "SeamlessM4TFeatureExtractor": SpeechFeatures.of,
}
