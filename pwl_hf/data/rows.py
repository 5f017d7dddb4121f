"""Rows of labelled samples, as they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import datasets
import torch

from pwl_hf.data.columns import LabelEncoding

# The values of a row, by column.
Row = dict[str, Any]


def rows_of(columns: Mapping[str, Sequence[Any]]) -> Iterator[Row]:
    """The rows of some columns, as `datasets` slices them."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """The rows of a split, and what is known of them.

    Args:
        title: What errors and logs call it: the split and the source.
        data: The rows, images and sounds still encoded.
        column: The column of the samples.
        label_column: The column of the labels, or None if there are none.
        encoding: The numbers of the labels, or None if there are none.
        labels: The labels, (rows,) int64. None if there are none, for a stream, and for words, which have several.
        max_samples: How many rows of a stream are read.
        tokens: The token of each private repository that images or sounds lie in.
    """

    title: str
    data: datasets.Dataset | datasets.IterableDataset
    column: str
    label_column: str | None
    encoding: LabelEncoding | None
    labels: torch.Tensor | None
    max_samples: int | None = None
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def label_names(self) -> list[str] | None:
        """The labels' names in the order of their numbers; None without labels, or if they are not known."""
        return None if self.encoding is None or self.encoding.names is None else list(self.encoding.names)

    @property
    def num_rows(self) -> int | None:
        """How many rows there are; None for a stream."""
        return None if self.streaming else len(self.data)

    @property
    def streaming(self) -> bool:
        """Whether the rows are read as they are needed, and only in their order."""
        return isinstance(self.data, datasets.IterableDataset)

    def encode(self, row: Row, number: int) -> int | None:
        """The label of a row, or None if the data has none."""
        if self.encoding is None or self.label_column is None:
            return None
        return self.encoding(row[self.label_column], number, self.title)

    def renumbered(self, numbers: Sequence[int]) -> Self:
        """The same rows with other numbers of the labels, such as a model's.

        Args:
            numbers: The new number of each label; of labels whose count is not known, as many as there may be.

        Returns:
            The rows; what their labels are called is not known of the new numbers.
        """
        if self.encoding is None:
            return self
        old = self.encoding.numbers
        new = dict(enumerate(numbers)) if old is None else {value: numbers[number] for value, number in old.items()}
        labels = None if self.labels is None else torch.tensor(numbers, dtype=torch.int64)[self.labels]
        return replace(self, encoding=LabelEncoding(None, new), labels=labels)
