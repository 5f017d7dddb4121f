"""Images that tell which they are: the first colour of number i is i, so a row can be told from its pixels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import ViTImageProcessorPil

NAMES = ["cat", "dog", "owl"]


def picture(number: int, side: int = 6) -> Image.Image:
    return Image.new("RGB", (side, side), (number, 255 - number, 7 * number % 256))


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    picture(number).save(buffer, format="PNG")
    return buffer.getvalue()


def table(
    numbers: Sequence[int], image: str = "image", label: str | None = "label", names: Sequence[str] = NAMES
) -> Dataset:
    """Rows as `datasets` keeps them; the label of number i is that of `NAMES` at i modulo 3, in any order of them."""
    features = {image: ImageFeature()}
    columns = {image: [{"bytes": png(number), "path": None} for number in numbers]}
    if label is not None:
        features[label] = ClassLabel(names=list(names))
        columns[label] = [names.index(NAMES[number % 3]) for number in numbers]
    return Dataset.from_dict(columns, features=Features(features))


def plain_parquet(path: Path, numbers: Sequence[int], labels: Sequence[object] | None = None) -> Path:
    """A file as other programs write it: structs of bytes, and no features."""
    import pyarrow.parquet as pq

    columns = {"image": [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]}
    if labels is not None:
        columns["label"] = list(labels)
    pq.write_table(pa.table(columns), path)
    return path


def processor(side: int = 4) -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": side, "width": side}, do_normalize=False)


def numbers_of(pixel_values: torch.Tensor) -> list[int]:
    """Which pictures the tensors are, of one or of a batch."""
    found: np.ndarray = (pixel_values.reshape(-1, *pixel_values.shape[-3:])[:, 0, 0, 0] * 255).round().int().numpy()
    return found.tolist()
