"""Features of sound in numpy: those of transformers' feature extractors, within 1e-5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from pwl_hf.runtime.sound_features import Spectrograms, Waveforms, extractor_of

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


@pytest.mark.parametrize(
    ("theirs", "kind"), [(Wav2Vec2FeatureExtractor(), Waveforms), (ASTFeatureExtractor(), Spectrograms)]
)
def test_what_a_file_leaves_out_is_transformers_default(theirs: Any, kind: type) -> None:
    own = extractor_of({"feature_extractor_type": type(theirs).__name__})
    assert type(own) is kind
    sounds = waves([5000], 0.1)
    expected = theirs(sounds[0], sampling_rate=16000, return_tensors="np")["input_values"]
    assert close(own.batches(named(sounds))[0]["input_values"], expected)
