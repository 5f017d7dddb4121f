"""The options of the data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from pwl_hf.data import DataSource
from pwl_hf.training.images.augmentation import AUGMENTATIONS, Augmentation
from pwl_hf.training.pairs import parse_pairs


@dataclass
class DataArguments:
    """Where the samples come from. What is not given is found from the data.

    Raises:
        ValueError: For options that contradict one another, or are out of their range.
    """

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "'digits' (embedded), the id of a data set on the Hub, a folder (of images or sounds, say), a file "
            "or a glob of files (parquet, csv, json)."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    train_split: str = field(default="train", metadata={"help": "Split to train on; parts such as train[:90%%] work."})
    eval_split: str | None = field(
        default="test",
        metadata={"help": "Split to measure on; 'validation' is what holdout holds out, 'none' is no measuring."},
    )
    holdout: float | None = field(
        default=None, metadata={"help": "Part of the split 'train' to hold out of it as split 'validation'."}
    )
    holdout_by: str | None = field(
        default=None,
        metadata={"help": "In place of a part, the rows of 'train' to hold out, as COLUMN=VALUE: a speaker's."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts, or of the lists of words."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of second texts, of pairs."})
    audio_column: str | None = field(default=None, metadata={"help": "Column of the sounds."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Cut texts of more tokens to so many; what the networks take by default."},
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the labels, in the order of their numbers."}
    )
    unlabelled: bool = field(
        default=False, metadata={"help": "Train on the samples alone; alpha must be 0. Measuring takes labels."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read rows as they are needed, with no copy on disk; needs max_steps."}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Of a stream, each row is drawn at random out of so many."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, the same in every run."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Measure on this many rows, the same in every run."}
    )
    keep_in_memory: bool = field(
        default=False, metadata={"help": "Decode and process all images or sounds once, into memory: for small ones."}
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "How training images are moved: digits (turned, scaled and shifted a little), flip-crop, paper "
            "(flip, crop and 15 degrees), or none.",
            "choices": list(AUGMENTATIONS),
        },
    )
    augmentation_overrides: list[str] | None = field(
        default=None,
        metadata={
            "help": "What differs from that, as NAME=VALUE ...: rotation (degrees), horizontal_flip, crop, scale, "
            "shift (parts of a side), background."
        },
    )

    def __post_init__(self) -> None:
        if self.eval_split == "none":
            self.eval_split = None
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer must not be negative, got {self.shuffle_buffer}")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        if self.streaming and self.keep_in_memory:
            raise ValueError("streaming and keep_in_memory exclude each other: give one")
        self.augment()
        if self.dataset is not None:
            self.train_source(), self.eval_source()

    def augment(self) -> Augmentation:
        """How training images are moved.

        Raises:
            ValueError: For a name that does not exist, or a setting that does not.
        """
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {self.augmentation!r}")
        overrides = parse_pairs(self.augmentation_overrides or (), "augmentation_overrides")
        try:
            return replace(AUGMENTATIONS[self.augmentation], **overrides)
        except TypeError as error:
            names = ", ".join(item.name for item in fields(Augmentation))
            raise ValueError(f"augmentation_overrides: {error}; there are {names}") from None

    def train_source(self, token: str | None = None) -> DataSource:
        """What is trained on.

        Args:
            token: The Hub's token for a private data set; the stored one by default.
        """
        return self._source(token, self.unlabelled, self.max_train_samples)

    def eval_source(self, token: str | None = None) -> DataSource:
        """What is measured on, with its labels."""
        return self._source(token, False, self.max_eval_samples)

    def _source(self, token: str | None, unlabelled: bool, max_samples: int | None) -> DataSource:
        return DataSource(
            str(self.dataset),
            config=self.dataset_config,
            revision=self.dataset_revision,
            image_column=self.image_column,
            text_column=self.text_column,
            text_pair_column=self.text_pair_column,
            audio_column=self.audio_column,
            label_column=None if unlabelled else self.label_column,
            label_names=None if unlabelled else self.class_names,
            unlabelled=unlabelled,
            streaming=self.streaming,
            max_samples=max_samples,
            holdout=self.holdout,
            holdout_by=self.holdout_by,
            token=token,
        )
