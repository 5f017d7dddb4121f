"""Where images, texts and sounds come from, in words: nothing is opened here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pwl_hf.data.errors import DataError

# The data that comes with scikit-learn.
DIGITS = "digits"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class DataSource:
    """Labelled images, texts or sounds: where they lie, which columns they are, and how many are used.

    Args:
        name: `"digits"` (scikit-learn's handwritten digits, which need no download), a folder of images, of
            sounds or of any files that `datasets.load_dataset` reads, a file or a glob of files (parquet, csv, json or
            jsonl), or the id of a data set on the Hub.
        config: The configuration of a data set on the Hub.
        revision: Its branch, tag or commit.
        image_column: The column of the images; found from the features by default.
        text_column: The column of the texts, or of the lists of words; found from the features by default.
        text_pair_column: The column of second texts, where two are classified together.
        audio_column: The column of the sounds; found from the features by default.
        label_column: The column of the labels, of words that of their lists; found from the features by default.
        label_names: The names of the labels in the order of their numbers. By default those of the features, the
            sorted values of a column of strings, or the numbers themselves; class folders and strings that are all
            numbers are in the order of their values. Names that are those of the features in another order number the
            labels by that order, so that they can be brought into a model's own. Two labels may have one name, except
            those of a column of strings.
        unlabelled: Take the samples alone, whatever other columns there are.
        streaming: Read rows as they are needed, without a copy on disk.
        max_samples: Use this many rows of a split: a random choice that is the same in every run, and a part of what
            a greater number would choose. Of a stream, the first rows.
        holdout: The part of the split "train" (above 0, below 1) that is held out of it as the split "validation".
            It is stratified by label, and the same in every run.
        holdout_by: In place of a part, what is held out: rows of the split "train" with a value in a column, such as
            `"speaker=theo"`. These rows are not trained on.
        token: The token for a private data set; the stored one by default.

    Raises:
        DataError: If the values contradict one another.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    audio_column: str | None = None
    label_column: str | None = None
    label_names: Sequence[str] | None = None
    unlabelled: bool = False
    streaming: bool = False
    max_samples: int | None = None
    holdout: float | None = None
    holdout_by: str | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise DataError('the data has no name: give "digits", a folder, a file or a data set on the Hub')
        if self.label_names is not None:
            # A tuple, so that sources can be compared and hashed.
            object.__setattr__(self, "label_names", tuple(self.label_names))
            if not self.label_names:
                raise DataError("label_names must be names, got none: leave it out to take the data's own")
        if self.unlabelled and (self.label_column is not None or self.label_names is not None):
            raise DataError("unlabelled data has no label_column and no label_names: leave them out")
        if self.max_samples is not None and self.max_samples < 1:
            raise DataError(f"max_samples must be 1 or more, got {self.max_samples}")
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise DataError(f"holdout is a part of the training rows: above 0 and below 1, got {self.holdout}")
        if self.holdout_by is not None and (self.holdout is not None or not all(self.holdout_by.partition("="))):
            raise DataError(
                f"holdout_by is COLUMN=VALUE, in place of holdout, got {self.holdout_by!r} and holdout {self.holdout}"
            )
        if self.streaming and self.holds_out:
            raise DataError("nothing can be held out of a stream, whose end is unknown: leave out one")
        if self.name == DIGITS:
            for option in ("config", "revision", "streaming"):
                if getattr(self, option):
                    raise DataError(f"the digits come with scikit-learn and lie in memory: leave out {option}")

    @property
    def holds_out(self) -> bool:
        """Whether rows of the split "train" are held out of it."""
        return self.holdout is not None or self.holdout_by is not None
