"""A split as a network takes it, whatever its samples are."""

from __future__ import annotations

from typing import Any

from pwl_hf.data.errors import DataError
from pwl_hf.data.opening import Split
from pwl_hf.data.sounds import SoundSplit
from pwl_hf.data.tokens import TextSplit


def inputs_of(
    split: Split,
    processing: Any,
    *,
    num_channels: int = 3,
    max_length: int | None = None,
    keep_in_memory: bool = False,
    shuffle_buffer: int = 0,
    seed: int = 0,
) -> Any:
    """The samples of a split as a torch dataset of what a network takes; it may have a `collate`.

    Args:
        split: The split.
        processing: The network's image processor, tokenizer or feature extractor.
        num_channels: Of images; see `ImageSplit.pixels`.
        max_length: Of texts; see `TextSplit.tokenized`.
        keep_in_memory: Decode and process all images or sounds now; texts are in any case.
        shuffle_buffer: Of a stream; see `ImageSplit.pixels`.
        seed: The seed of that.

    Raises:
        DataError: If a sample cannot be read, or the samples cannot be kept in memory.
    """
    order: dict[str, Any] = {"shuffle_buffer": shuffle_buffer, "seed": seed}
    if isinstance(split, TextSplit):
        if keep_in_memory and split.streaming:
            raise DataError(f"{split.title} is a stream, and is not kept in memory: leave out one of the two")
        return split.tokenized(processing, max_length=max_length, **order)
    if isinstance(split, SoundSplit):
        return split.features(processing, keep_in_memory=keep_in_memory, **order)
    return split.pixels(processing, num_channels=num_channels, keep_in_memory=keep_in_memory, **order)
