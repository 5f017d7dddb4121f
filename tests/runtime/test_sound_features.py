"""Features of sound in numpy: those of transformers' feature extractors, within 1e-5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from pwl_hf.modeling.errors import InputError
from pwl_hf.runtime.sound_features import (
    LogMelSpectrograms,
    Spectrograms,
    SpeechFeatures,
    Waveforms,
    extractor_of,
)

LENGTHS = st.lists(st.integers(400, 6000), min_size=1, max_size=3)
LOUDNESS = st.sampled_from([0.0, 1e-4, 0.1, 1.0, 30.0])


def waves(lengths: list[int], loudness: float) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(sum(lengths))
    # Off the middle, so that a mean matters.
    return [(loudness * (generator.normal(size=length) + 0.3)).astype(np.float32) for length in lengths]


def named(sounds: list[NDArray[np.float32]]) -> list[tuple[str, NDArray[np.float32]]]:
    return [(f"sound {number}", sound) for number, sound in enumerate(sounds)]


def close(found: NDArray[Any], expected: Any) -> bool:
    expected = np.asarray(expected)
    return found.shape == expected.shape and bool(
        (np.abs(found - expected) < 1e-5 * max(1, np.abs(expected).max())).all()
    )


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, loudness=LOUDNESS, normalizes=st.booleans(), padding=st.sampled_from([0.0, -1.5]))
def test_waveforms_in_a_batch(lengths: list[int], loudness: float, normalizes: bool, padding: float) -> None:
    theirs = Wav2Vec2FeatureExtractor(do_normalize=normalizes, padding_value=padding, return_attention_mask=True)
    sounds = waves(lengths, loudness)
    expected = theirs(sounds, sampling_rate=16000, padding=True, return_tensors="np")
    (found,) = extractor_of(theirs.to_dict()).batches(named(sounds))
    assert close(found["input_values"], expected["input_values"])
    assert np.array_equal(found["attention_mask"], expected["attention_mask"])


@settings(max_examples=20, deadline=None)
@given(lengths=LENGTHS, loudness=LOUDNESS)
def test_waveforms_without_a_mask_are_those_of_each_alone(lengths: list[int], loudness: float) -> None:
    theirs = Wav2Vec2FeatureExtractor()
    sounds = waves(lengths, loudness)
    made = extractor_of(theirs.to_dict()).batches(named(sounds))
    for sound, found in zip(sounds, made, strict=True):
        assert close(found["input_values"], theirs(sound, sampling_rate=16000, return_tensors="np")["input_values"])
        assert found["attention_mask"].all()


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    loudness=LOUDNESS,
    normalizes=st.booleans(),
    bins=st.sampled_from([8, 40, 128]),
    rate=st.sampled_from([8000, 16000, 22050]),
    frames=st.sampled_from([1, 12, 64]),
)
def test_spectrograms(lengths: list[int], loudness: float, normalizes: bool, bins: int, rate: int, frames: int) -> None:
    theirs = ASTFeatureExtractor(
        sampling_rate=rate, num_mel_bins=bins, max_length=frames, do_normalize=normalizes, mean=-3.0, std=2.0
    )
    sounds = waves(lengths, loudness)
    (found,) = extractor_of(theirs.to_dict()).batches(named(sounds))
    assert close(found["input_values"], theirs(sounds, sampling_rate=rate, return_tensors="np")["input_values"])


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    loudness=LOUDNESS,
    bins=st.sampled_from([8, 80, 128]),
    rate=st.sampled_from([4000, 16000, 22050]),
    fourier=st.sampled_from([255, 400, 512]),
    hop=st.sampled_from([100, 160, 333]),
    padding=st.sampled_from([0.0, 0.01]),
)
def test_log_mel_spectrograms(
    lengths: list[int], loudness: float, bins: int, rate: int, fourier: int, hop: int, padding: float
) -> None:
    theirs = WhisperFeatureExtractor(bins, rate, chunk_length=1, n_fft=fourier, hop_length=hop, padding_value=padding)
    sounds = waves(lengths, loudness)
    own = extractor_of(theirs.to_dict())
    (found,) = own.batches(named(sounds))
    filled = [np.pad(w[:rate], (0, max(0, rate - len(w))), constant_values=padding).astype(np.float32) for w in sounds]
    assert close(found["input_features"], theirs._np_extract_fbank_features(np.stack(filled), "cpu"))
    # Over torch, which is taken where it is installed, in float32: rounding shows far below the loudest bin.
    over_torch = theirs(sounds, sampling_rate=rate, return_tensors="np")["input_features"]
    assert np.abs(found["input_features"] - over_torch).max() < 1e-4
    assert found["input_features"].shape[1:] == own.shape


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(720, 6000), min_size=1, max_size=3),
    loudness=LOUDNESS,
    bins=st.sampled_from([8, 80]),
    rate=st.sampled_from([8000, 16000]),
    stride=st.sampled_from([2, 3]),
    padding=st.sampled_from([0.0, 1.0]),
)
def test_features_of_speech(
    lengths: list[int], loudness: float, bins: int, rate: int, stride: int, padding: float
) -> None:
    theirs = SeamlessM4TFeatureExtractor(num_mel_bins=bins, sampling_rate=rate, stride=stride, padding_value=padding)
    sounds = waves(lengths, loudness)
    expected = theirs(sounds, sampling_rate=rate, return_tensors="np")
    own = extractor_of(theirs.to_dict())
    (found,) = own.batches(named(sounds))
    assert close(found["input_features"], expected["input_features"])
    assert np.array_equal(found["attention_mask"], expected["attention_mask"])
    assert found["input_features"].shape[2:] == own.shape[1:]


def test_features_of_speech_without_a_mask_are_those_of_each_alone() -> None:
    theirs = SeamlessM4TFeatureExtractor(return_attention_mask=False, padding_value=0.5)
    sounds = waves([3000, 4170], 0.1)
    made = extractor_of(theirs.to_dict()).batches(named(sounds))
    for sound, found in zip(sounds, made, strict=True):
        expected = theirs(sound, sampling_rate=16000, return_tensors="np")
        assert set(expected) == {"input_features"}
        assert close(found["input_features"], expected["input_features"])
        assert found["attention_mask"].all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_extractor_type": "ClapFeatureExtractor"}, "'ClapFeatureExtractor', and the runtime has Wav2Vec2"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "dither": 0.1}, "dither is 0.1, it must be 0"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 10**6}, "chunk_length is 1000000, it"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": "80"}, "feature_size is '80', it must"),
        (
            {"feature_extractor_type": "WhisperFeatureExtractor", "sampling_rate": 100, "chunk_length": 1},
            "n_fft is 400",
        ),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor", "stride": 1}, "stride is 1, it must be 2 or more"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 1}, "feature_size is 1, it must"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 10**5}, "num_mel_bins is 100000"),
        ({"feature_extractor_type": "ASTFeatureExtractor", "max_length": 10**6}, "max_length is 1000000, it must be"),
        ({"feature_extractor_type": "ASTFeatureExtractor", "feature_size": 80}, "feature_size is 80, it must be 1"),
    ],
)
def test_what_cannot_be_made_as_transformers_makes_it_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extractor_of(fields)


def test_a_sound_of_a_single_frame_has_no_variance() -> None:
    with pytest.raises(InputError, match="sound 1 has 559 samples, fewer than 2 frames, 560"):
        extractor_of(SeamlessM4TFeatureExtractor().to_dict()).batches(named(waves([560, 559], 0.1)))


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [
        (Wav2Vec2FeatureExtractor(), Waveforms),
        (ASTFeatureExtractor(), Spectrograms),
        (WhisperFeatureExtractor(), LogMelSpectrograms),
        (SeamlessM4TFeatureExtractor(), SpeechFeatures),
    ],
)
def test_what_a_file_leaves_out_is_transformers_default(theirs: Any, kind: type) -> None:
    own = extractor_of({"feature_extractor_type": type(theirs).__name__})
    assert type(own) is kind
    sounds = waves([5000], 0.1)
    name = theirs.model_input_names[0]
    expected = theirs(sounds[0], sampling_rate=16000, return_tensors="np")[name]
    assert close(own.batches(named(sounds))[0][name], expected)
