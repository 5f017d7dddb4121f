"""Sounds, from a file to a batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader
from transformers import (
    ASTFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from pwl_hf.data import DataError, DataSource, SoundSplit, open_split
from tests.data.sounds import RATE, encoded, sound_table, tone

NAMES = ["low", "high"]
WAVES = [tone(50), tone(200, 0.2), tone(60, 0.15)]
EXTRACTOR = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)


def opened(path: Path, **options: Any) -> SoundSplit:
    return open_split(DataSource(str(path), **options), "train", "sounds")


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    return sound_table(tmp_path / "train.parquet", [encoded(wave) for wave in WAVES], [0, 1, 0], NAMES)


def test_a_batch_is_what_the_extractor_makes_of_the_waveforms(sounds: Path) -> None:
    data = opened(sounds).features(EXTRACTOR)
    assert (data.lengths, len(data)) == ([100, 200, 150], 3)
    batch = data.collate([data[row] for row in range(3)])
    expected = EXTRACTOR(WAVES, sampling_rate=RATE, padding=True, return_tensors="pt")
    for name in ("input_values", "attention_mask"):
        torch.testing.assert_close(batch[name], expected[name], atol=1e-6, rtol=1e-5)
    assert (batch["labels"].tolist(), batch["sample_ids"].tolist()) == ([0, 1, 0], [0, 1, 2])
    kept = opened(sounds).features(EXTRACTOR, keep_in_memory=True)
    assert all(torch.equal(batch[name], value) for name, value in kept.collate(kept.__getitems__([0, 1, 2])).items())


@pytest.mark.parametrize(
    "extractor",
    [
        ASTFeatureExtractor(sampling_rate=16000, num_mel_bins=8, max_length=24),
        SeamlessM4TFeatureExtractor(sampling_rate=16000),
        WhisperFeatureExtractor(feature_size=8, chunk_length=1),
    ],
    ids=["spectrogram", "features", "log-mel"],
)
def test_every_kind_of_extractor_makes_batches(extractor: Any, tmp_path: Path) -> None:
    waves = [tone(400, 0.1, 16000), tone(900, 0.3, 16000)]
    path = sound_table(tmp_path / "train.parquet", [encoded(wave, 16000) for wave in waves], [0, 1], NAMES)
    data = opened(path).features(extractor)
    batch = data.collate([data[0], data[1]])
    expected = extractor(waves, sampling_rate=16000, return_tensors="pt")
    for name in expected:
        torch.testing.assert_close(batch[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_formats_channels_and_rates_become_one(form: tuple[str, str], tmp_path: Path) -> None:
    stereo = encoded(tone(300, 0.5, 16000, channels=2), 16000, *form)
    path = sound_table(tmp_path / "train.parquet", [stereo], [0], NAMES)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=False)
    (item,) = opened(path).features(extractor).__getitems__([0])
    found, expected = item["input_values"], tone(300, 0.5, 8000) * 0.75
    assert abs(len(found) - len(expected)) < 1200
    # The middle, where codecs and filters have no edge; their delay is not the point.
    assert np.abs(np.fft.rfft(found[1000:3000])).argmax() == np.abs(np.fft.rfft(expected[1000:3000])).argmax()
    assert np.std(found[1000:3000]) == pytest.approx(np.std(expected[1000:3000]), rel=0.05)


def test_folders_paths_and_streams_have_the_same_sounds(sounds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for label, wave, number in ((0, WAVES[0], 0), (1, WAVES[1], 0), (0, WAVES[2], 1)):
        (folder / "train" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "train" / NAMES[label] / f"{number}.wav", wave, RATE, subtype="FLOAT")
    of_folder = opened(folder)
    assert of_folder.label_names == ["high", "low"]
    assert len(list(opened(folder, streaming=True).features(EXTRACTOR))) == 3
    items = of_folder.features(EXTRACTOR)
    assert sorted(items.lengths) == [100, 150, 200]
    (tmp_path / "train.csv").write_text(
        "file,label\n" + "".join(f"{path},x\n" for path in sorted(folder.rglob("*.wav"))), encoding="utf-8"
    )
    listed = opened(tmp_path / "train.csv", audio_column="file").features(EXTRACTOR)
    assert sorted(listed.lengths) == [100, 150, 200]
    streamed = opened(sounds, streaming=True).features(EXTRACTOR)
    whole = opened(sounds).features(EXTRACTOR)
    (batch,) = DataLoader(streamed, 3, collate_fn=streamed.collate)
    expected = whole.collate([whole[row] for row in range(3)])
    assert all(torch.equal(batch[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (None, "row 1 of .* has no sound in 'audio'"),
        (
            b"RIFF, but no sound",
            "the sound in row 1 of .* cannot be read as a sound: .*soundfile reads WAV, FLAC, OGG and MP3",
        ),
    ],
)
def test_sounds_that_headers_tell_of_are_refused_at_once(sound: bytes | None, reason: str, tmp_path: Path) -> None:
    path = sound_table(tmp_path / "train.parquet", [encoded(WAVES[0]), sound], [0, 1], NAMES)
    with pytest.raises(DataError, match=reason):
        opened(path).features(EXTRACTOR)


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (np.zeros(0, np.float32), "row 0 of .* has no samples"),
        (np.full(9, np.nan, np.float32), "holds NaN or infinity"),
    ],
)
def test_sounds_without_a_value_are_refused_when_they_are_read(wave: np.ndarray, reason: str, tmp_path: Path) -> None:
    path = sound_table(tmp_path / "train.parquet", [encoded(wave)], [0], NAMES)
    with pytest.raises(DataError, match=reason):
        opened(path).features(EXTRACTOR, keep_in_memory=True)


def test_a_sound_of_which_resampling_leaves_nothing_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = sound_table(
        tmp_path / "train.parquet", [encoded(WAVES[0]), encoded(np.ones(2, np.float32), 48000)], [0, 1], NAMES
    )
    data = opened(path).features(EXTRACTOR)
    with pytest.raises(DataError, match=r"row 1 of .* has too few samples, none are left at 1000 a second: .*leave"):
        data[1]


@pytest.mark.parametrize(
    ("package", "reason"),
    [("soundfile", "sounds need soundfile"), ("soxr", "row 0 .* 1000 .* takes 2000: .* need soxr")],
)
def test_a_missing_package_is_named(package: str, reason: str, sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf'{reason}, which .*: pip install "pwl-hf\[audio\]"'):
        opened(sounds).features(Wav2Vec2FeatureExtractor(sampling_rate=2000))


def test_columns_of_sounds_are_found_and_others_refused(sounds: Path) -> None:
    split = opened(sounds)
    assert (split.column, split.label_column, split.label_names) == ("audio", "label", NAMES)
    with pytest.raises(DataError, match=r"audio_column 'label' of .* holds no sounds"):
        opened(sounds, audio_column="label")
    with pytest.raises(DataError, match="has no column 'sound' for audio_column"):
        opened(sounds, audio_column="sound")
    with pytest.raises(DataError, match="no column known to hold texts"):
        open_split(DataSource(str(sounds)), "train", "texts")
