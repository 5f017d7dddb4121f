"""Labelled images, texts, words and sounds, from wherever they lie, as networks take them.

from pwl_hf.data import DataSource, open_split

split = open_split(DataSource("uoft-cs/cifar10", max_samples=2000), "test")
dataset = split.pixels(processor)  # pixel_values, labels and sample_ids of each image

split = open_split(DataSource("PolyAI/banking77"), "test", "texts")
dataset = split.tokenized(tokenizer)  # input_ids and so on; dataset.collate pads a batch

split = open_split(DataSource("superb", config="ks"), "test", "sounds")
dataset = split.features(feature_extractor)  # input_values and so on; dataset.collate pads a batch
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pwl_hf.modeling.lazy import lazy

if TYPE_CHECKING:
    from pwl_hf.data.errors import DataError
    from pwl_hf.data.opening import open_split
    from pwl_hf.data.sounds import SoundSplit
    from pwl_hf.data.source import DataSource
    from pwl_hf.data.split import ImageSplit
    from pwl_hf.data.tokens import TextSplit
    from pwl_hf.data.words import WordSplit

# Lazy, for a command line that names a source must not wait for torch.
_EXPORTS = {
    "DataError": "errors",
    "DataSource": "source",
    "ImageSplit": "opening",
    "SoundSplit": "opening",
    "TextSplit": "opening",
    "WordSplit": "opening",
    "open_split": "opening",
}

__all__ = ["DataError", "DataSource", "ImageSplit", "SoundSplit", "TextSplit", "WordSplit", "open_split"]

__getattr__, __dir__ = lazy(__name__, _EXPORTS)
