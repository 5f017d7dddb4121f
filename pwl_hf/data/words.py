"""Lists of words with a label each, as tokens.

A word's label stands at its first token; the others, and those that the tokenizer adds, have -100 and do not count, as
in transformers' examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase

from pwl_hf.data.errors import DataError
from pwl_hf.data.names import NO_LABEL
from pwl_hf.data.rows import Row
from pwl_hf.data.tokens import TextSplit, TokenReader


def joins_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer reads a list of words as one word, as byte-level ones do without `add_prefix_space`."""
    words = ["a", "b"]
    apart: list[int] = tokenizer(words, is_split_into_words=True)["input_ids"]  # type: ignore[assignment]
    return apart != tokenizer(" ".join(words))["input_ids"]


@dataclass(frozen=True, eq=False)
class WordSplit(TextSplit):
    """Lists of words and of their labels, as `open_split` opens them; see `TextSplit`."""

    def tags(self, row: Row, number: int) -> list[int] | None:
        """The label of each word of a row, or None if the data has none.

        Raises:
            DataError: If there is not one for each word, or one is none of the labels.
        """
        if self.encoding is None or self.label_column is None:
            return None
        words, values = row[self.column], row[self.label_column]
        if values is None or len(values) != len(words):
            count = "no" if values is None else len(values)
            raise DataError(
                f"row {number} of {self.title} has {len(words)} words in {self.column!r} and {count} labels in "
                f"{self.label_column!r}: give one label for each word, or leave the row out"
            )
        return [self.encoding(value, number, self.title) for value in values]

    def _reader(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> TokenReader:
        return _WordReader(self, tokenizer, max_length)


class _WordReader(TokenReader):
    """Makes items of rows of words; `labels` is a list as long as the tokens."""

    split: WordSplit

    def __init__(self, split: WordSplit, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                f"the tokenizer ({type(tokenizer).__name__}) does not tell which word a token is of: give one that is "
                "saved as tokenizer.json"
            )
        if joins_words(tokenizer):
            raise DataError(
                f"the tokenizer ({type(tokenizer).__name__}) reads words as if nothing stood between them: save it "
                "with add_prefix_space=True"
            )
        super().__init__(split, tokenizer, max_length)

    def _collator(self) -> Any:
        return DataCollatorForTokenClassification(self.tokenizer)

    def _checked(self, text: Any, number: int, name: str) -> Any:
        if not isinstance(text, list) or not all(isinstance(word, str) for word in text):
            raise DataError(
                f"row {number} of {self.split.title} has no list of words in {name!r}, but {text!r:.50}: give it one, "
                "or leave the row out"
            )
        return text

    def _tokens(self, given: Sequence[list[Any]], **options: Any) -> Any:
        return self.tokenizer(*given, is_split_into_words=True, **options)

    def _labels(self, row: Row, number: int, made: Any, place: int) -> Any:
        tags = self.split.tags(row, number)
        if tags is None:
            return None
        words = made.word_ids(place)
        return [
            NO_LABEL if word is None or (at and words[at - 1] == word) else tags[word] for at, word in enumerate(words)
        ]
