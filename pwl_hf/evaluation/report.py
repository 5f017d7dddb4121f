"""An evaluation of a repository, as it is written down (no torch).

The JSON, schema version 1, is described in `docs/evaluating.md`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pwl_hf.evaluation.area import area_over_bytes, is_monotone
from pwl_hf.evaluation.intervals import CONFIDENCE
from pwl_hf.evaluation.results import Comparison, Evaluation, MaskAccuracy

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RepositoryEvaluated:
    """Which weights were evaluated.

    Args:
        name: The folder or Hub id, as it was given.
        subfolder: Where in it the model lies.
        commit: The commit of a Hub repository; None for a folder.
        fingerprint: The manifest's fingerprint of all weight files.
    """

    name: str
    subfolder: str
    commit: str | None
    fingerprint: str


@dataclass(frozen=True)
class DatasetEvaluated:
    """On what they were evaluated.

    Args:
        name: The name of the source, as it was given.
        config: Its configuration.
        revision: Its branch, tag or commit, as it was given.
        split: The split.
        max_samples: At most so many rows were taken of it; None for all.
        n: How many samples there were.
        samples: What they are: `"images"`, `"texts"`, `"words"` or `"sounds"`.
    """

    name: str
    config: str | None
    revision: str | None
    split: str
    max_samples: int | None
    n: int
    samples: str = "images"


@dataclass(frozen=True)
class Settings:
    """How they were evaluated.

    Args:
        device: The device's type and its name.
        dtype: The floating dtype of the pass, such as `"float32"`.
        batch_size: How many samples ran at once.
    """

    device: str
    dtype: str
    batch_size: int


@dataclass(frozen=True)
class Report:
    """What was measured, on what, and with what.

    Args:
        repository: Which weights.
        dataset: Which samples.
        settings: How.
        orders: Which masks were asked for: `"prefix"`, `"suffix"`, `"contiguous"` or `"all"`.
        evaluation: The counts.
        schedule: The mask of each stage, in order.
        total_bytes: The bytes of all files that are loaded at each stage.
        versions: Version by name, of the packages that have a part in it.
    """

    repository: RepositoryEvaluated
    dataset: DatasetEvaluated
    settings: Settings
    orders: str
    evaluation: Evaluation
    schedule: tuple[str, ...]
    total_bytes: tuple[int, ...]
    versions: dict[str, str]

    @property
    def stages(self) -> list[MaskAccuracy]:
        """The stages among the masks, in their order; all of them with the orders prefix and all."""
        found = {mask.sources: mask for mask in self.evaluation.masks}
        return [found[sources] for sources in self.schedule if sources in found]

    @property
    def area(self) -> float | None:
        """The area under the accuracy over the bytes, if all stages were evaluated (see `area_over_bytes`)."""
        if len(self.stages) != len(self.total_bytes):
            return None
        return area_over_bytes([mask.accuracy for mask in self.stages], self.total_bytes)

    @property
    def monotone(self) -> bool | None:
        """Whether no stage is less accurate than the one before it, if all stages were evaluated."""
        if len(self.stages) != len(self.total_bytes):
            return None
        return is_monotone([mask.accuracy for mask in self.stages])

    def bytes_at(self, mask: MaskAccuracy) -> int | None:
        """The bytes of all files that are loaded at a stage; None for a mask that is none."""
        stage = self.stage_of(mask)
        return None if stage is None else self.total_bytes[stage]

    def stage_of(self, mask: MaskAccuracy) -> int | None:
        """The stage of a mask; None for a mask that is none."""
        return self.schedule.index(mask.sources) if mask.sources in self.schedule else None

    def to_json(self) -> str:
        """The text of the report, as JSON that ends with a line break."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "repository": asdict(self.repository),
            "dataset": asdict(self.dataset),
            "settings": asdict(self.settings),
            "orders": self.orders,
            "confidence": CONFIDENCE,
            "masks": [self._mask(mask) for mask in self.evaluation.masks],
            "area_over_bytes": self.area,
            "monotone": self.monotone,
            "below_student": [mask.sources for mask in self.evaluation.below_student],
            "versions": self.versions,
        }
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    def _mask(self, mask: MaskAccuracy) -> dict[str, Any]:
        return {
            "sources": mask.sources,
            "stage": self.stage_of(mask),
            "total_bytes": self.bytes_at(mask),
            "correct": mask.correct,
            "accuracy": mask.accuracy,
            "macro_f1": mask.macro_f1,
            "span_f1": mask.span_f1,
            "interval": list(mask.interval),
            "over_student": _comparison(mask.over_student),
            "over_previous": _comparison(mask.over_previous),
        }


def _comparison(found: Comparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "reference": found.reference,
        "difference": found.difference,
        "interval": list(found.interval),
        "gained": found.gained,
        "lost": found.lost,
    }
