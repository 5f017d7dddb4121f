"""Texts as a dataset of tokens, padded batch by batch.

Every item is what the tokenizer makes of a text, with `labels` and `sample_ids`, whole numbers; without `labels` if the
data has none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pwl_hf.data.errors import DataError
from pwl_hf.data.rows import LabelledRows

logger = logging.getLogger(__name__)

Item = dict[str, Any]

# How many texts are made into tokens at once.
_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class TextSplit(LabelledRows):
    """Texts and their labels, as `open_split` opens them.

    Args:
        pair_column: The column of the second texts, where two are classified together.
    """

    pair_column: str | None = None

    def tokenized(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> TokenDataset:
        """The texts as a model takes them.

        Args:
            tokenizer: The model's tokenizer.
            max_length: Texts of more tokens are cut there, and a warning says how many; of more than the tokenizer
                allows they are cut in any case.

        Raises:
            DataError: If a text is missing; of a stream, which texts are not read from yet.
        """
        return TokenDataset(self, tokenizer, max_length)


class TokenDataset(Dataset[Item]):
    """The tokens of a split, in memory, each text of its own length; `collate` makes batches.

    Args:
        split: The split.
        tokenizer: What makes tokens of texts.
        max_length: See `TextSplit.tokenized`.
    """

    def __init__(self, split: TextSplit, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        if not isinstance(split.data, datasets.Dataset):
            raise DataError(f"{split.title} is a stream, and texts are read whole: leave out streaming")
        self.split = split
        self.collate = DataCollatorWithPadding(tokenizer)
        # Without a limit of its own a tokenizer has a number beyond any text.
        longest = min(tokenizer.model_max_length, max_length or tokenizer.model_max_length)
        self.items: list[Item] = []
        cut = 0
        for start in range(0, len(split.data), _CHUNK):
            texts = [_texts(split, start, split.data[start : start + _CHUNK], name) for name in _columns(split)]
            made = tokenizer(*texts)
            cut += sum(len(ids) > longest for ids in made["input_ids"])
            if any(len(ids) > longest for ids in made["input_ids"]):
                made = tokenizer(*texts, truncation=True, max_length=longest)
            for offset in range(len(texts[0])):
                row = start + offset
                labels = {} if split.labels is None else {"labels": int(split.labels[row])}
                self.items.append({n: values[offset] for n, values in made.items()} | labels | {"sample_ids": row})
        if cut:
            logger.warning(
                "%d of %d texts of %s are longer than %d tokens, and are cut there",
                *(cut, len(self), split.title, longest),
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Item:
        return self.items[row]


def _columns(split: TextSplit) -> list[str]:
    return [name for name in (split.column, split.pair_column) if name is not None]


def _texts(split: TextSplit, start: int, rows: dict[str, list[Any]], name: str) -> Sequence[str]:
    for offset, text in enumerate(rows[name]):
        if not isinstance(text, str):
            raise DataError(f"row {start + offset} of {split.title} has no text in {name!r}, but {text!r:.50}")
    return rows[name]
