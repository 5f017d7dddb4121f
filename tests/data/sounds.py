"""Small sounds, encoded as data sets have them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import soundfile

RATE = 1000


def tone(pitch: float, seconds: float = 0.1, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A sine, (samples,) or (samples, channels) float32."""
    wave = 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate).astype(np.float32)
    return wave if channels == 1 else np.stack([wave * (c + 1) / channels for c in range(channels)], 1)


def encoded(wave: np.ndarray, rate: int = RATE, form: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=form, subtype=subtype)
    return file.getvalue()


def sound_table(path: Path, sounds: Sequence[bytes | None], labels: Sequence[int], names: Sequence[str]) -> Path:
    """A parquet file of sounds as `datasets` writes them."""
    label = datasets.ClassLabel(names=list(names))
    features = datasets.Features({"audio": datasets.Audio(decode=False), "label": label})
    # Past `Features.encode_example`, which needs torchcodec.
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    files = pa.array([None if sound is None else {"bytes": sound, "path": None} for sound in sounds], kind)
    table = pa.table({"audio": files, "label": pa.array(list(labels), pa.int64())})
    datasets.Dataset(table.replace_schema_metadata(features.arrow_schema.metadata)).to_parquet(path)
    return path
