"""The options of augmentation by integrated gradients (no torch, so that wrong ones are told at once)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class GradientArguments:
    """Which training images are mixed with the teacher's integrated gradients, and how those are computed.

    Raises:
        ValueError: For a value that cannot be, by name.
    """

    ig_probability: float = field(
        default=0.0,
        metadata={"help": "Part of the training images mixed half and half with their map; 0.1 in the paper."},
    )
    ig_maps: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the maps, computed once, for several runs; gradient-maps in output_dir if not given. "
            "All processes must see it."
        },
    )
    ig_target: Literal["label", "prediction"] | None = field(
        default=None,
        metadata={
            "help": "Whose logit the gradients are of: label, or prediction, the teacher's own answer. If not given, "
            "label, unless alpha is 0."
        },
    )
    ig_control: Literal["shuffled"] | None = field(
        default=None,
        metadata={"help": "For comparison: shuffled gives each image the map of another one, always the same."},
    )
    ig_steps: int = field(default=50, metadata={"help": "Points of the integral, each a forward and a backward pass."})
    ig_batch_size: int = field(default=256, metadata={"help": "Images in one such pass."})

    def __post_init__(self) -> None:
        if not 0 <= self.ig_probability <= 1:
            raise ValueError(f"ig_probability must be from 0 to 1, got {self.ig_probability}")
        for name in ("ig_steps", "ig_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.ig_control is not None and not self.ig_probability:
            raise ValueError(f"ig_control={self.ig_control} needs an ig_probability above 0")
