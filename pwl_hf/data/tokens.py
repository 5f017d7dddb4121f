"""Texts as tokens, padded batch by batch.

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
from pwl_hf.data.rows import LabelledRows, Row, rows_of
from pwl_hf.data.stream import RowStream

logger = logging.getLogger(__name__)

Item = dict[str, Any]

# How many texts are made into tokens at once.
_CHUNK = 1000


class TokenReader:
    """Makes items of rows of texts.

    Args:
        split: The split.
        tokenizer: What makes tokens of texts.
        max_length: Texts of more tokens are cut there; of more than the tokenizer allows they are cut in any case.

    Raises:
        DataError: If texts of different lengths cannot be put into one batch.
    """

    def __init__(self, split: TextSplit, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        if tokenizer.pad_token is None:
            raise DataError(
                f"the tokenizer ({type(tokenizer).__name__}) has no pad_token, so texts cannot be put into batches: "
                "save it, and the networks' configs (pad_token_id), with one, such as its eos_token"
            )
        self.split = split
        self.tokenizer = tokenizer
        self.collate = self._collator()
        # Without a limit of its own a tokenizer has a number beyond any text.
        self.longest = min(tokenizer.model_max_length, max_length or tokenizer.model_max_length)
        # How many texts were cut.
        self.cut = 0

    def __call__(self, rows: Sequence[Row], numbers: Sequence[int]) -> list[Item]:
        """The items of rows.

        Args:
            rows: The rows.
            numbers: Their numbers.

        Raises:
            DataError: If a text is missing or a label none of the split's, with the row.
        """
        given = [
            [self._checked(row[name], number, name) for row, number in zip(rows, numbers, strict=True)]
            for name in self._columns()
        ]
        made = self._tokens(given)
        long = sum(len(ids) > self.longest for ids in made["input_ids"])
        if long:
            made = self._tokens(given, truncation=True, max_length=self.longest)
            if self.cut == 0 and self.split.streaming:
                logger.warning("texts of %s are cut at %d tokens", self.split.title, self.longest)
            self.cut += long
        items: list[Item] = []
        for place, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            item: Item = {name: values[place] for name, values in made.items()}
            if (labels := self._labels(row, number, made, place)) is not None:
                item["labels"] = labels
            items.append(item | {"sample_ids": number})
        return items

    def _collator(self) -> Any:
        return DataCollatorWithPadding(self.tokenizer)

    def _columns(self) -> list[str]:
        return [name for name in (self.split.column, self.split.pair_column) if name is not None]

    def _checked(self, text: Any, number: int, name: str) -> Any:
        if not isinstance(text, str):
            raise DataError(
                f"row {number} of {self.split.title} has no text in {name!r}, but {text!r:.50}: give it one, or leave "
                "the row out"
            )
        return text

    def _tokens(self, given: Sequence[list[Any]], **options: Any) -> Any:
        return self.tokenizer(*given, **options)

    def _labels(self, row: Row, number: int, made: Any, place: int) -> Any:
        return self.split.encode(row, number)


@dataclass(frozen=True, eq=False)
class TextSplit(LabelledRows):
    """Texts and their labels, as `open_split` opens them.

    Args:
        pair_column: The column of the second texts, where two are classified together.
    """

    pair_column: str | None = None

    def tokenized(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        shuffle_buffer: int = 0,
        seed: int = 0,
    ) -> TokenDataset | RowStream:
        """The texts as a model takes them.

        Args:
            tokenizer: The model's tokenizer.
            max_length: Texts of more tokens are cut there, and a warning says how many; of more than the tokenizer
                allows they are cut in any case.
            shuffle_buffer: Of a stream, draw each row at random out of this many; 0 keeps the order. A loader
                shuffles everything else.
            seed: The seed of that.

        Returns:
            A torch dataset whose items are what the tokenizer makes of a text, with `labels` and `sample_ids` (see
            `ImageSplit.pixels`), and whose `collate` makes a padded batch of some. All are read now but those of a
            stream.

        Raises:
            DataError: If a text is missing, or a label is none of the split's: now, or of a stream when it is read.
        """
        read = self._reader(tokenizer, max_length)
        if isinstance(self.data, datasets.IterableDataset):
            return RowStream(self, read, read.collate, shuffle_buffer=shuffle_buffer, seed=seed)
        if shuffle_buffer:
            raise DataError(f"{self.title} is no stream: let the loader shuffle it, and leave out shuffle_buffer")
        return TokenDataset(self, read)

    def _reader(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> TokenReader:
        return TokenReader(self, tokenizer, max_length)


class TokenDataset(Dataset[Item]):
    """The tokens of a split, in memory, each text of its own length; `collate` makes batches.

    Args:
        split: The split, not streamed.
        read: Makes items of its rows.
    """

    def __init__(self, split: TextSplit, read: TokenReader) -> None:
        self.split = split
        self.collate = read.collate
        self.items: list[Item] = []
        for start in range(0, len(split.data), _CHUNK):
            rows = list(rows_of(split.data[start : start + _CHUNK]))
            self.items += read(rows, range(start, start + len(rows)))
        if read.cut:
            logger.warning(
                "%d of %d texts of %s are longer than %d tokens, and are cut there",
                *(read.cut, len(self), split.title, read.longest),
            )

    @property
    def lengths(self) -> list[int]:
        """How many tokens each text has."""
        return [len(item["input_ids"]) for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Item:
        return self.items[row]
