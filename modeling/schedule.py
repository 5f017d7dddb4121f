"""The schedule of a model: the mask of each stage, from the student to the teacher (pure Python)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from .sources import Sources


@dataclass(frozen=True)
class Schedule:
    """The masks of the stages in order, each with more of the teacher's blocks than the one before it.

    Blocks may come in any order. Without a reason for another one they come from the first to the last: `prefixes`.

    Args:
        masks: The student's mask, the stages between, the teacher's mask.

    Raises:
        ValueError: If they do not lead from the student to the teacher, or a stage gives up a block of the teacher's.

    Example:

        >>> schedule = Schedule.of(["SSS", "SST", "TST", "TTT"])
        >>> schedule.num_stages, schedule.mask(2).mask, schedule.is_prefixes
        (3, 'TST', False)
    """

    masks: tuple[Sources, ...]

    def __post_init__(self) -> None:
        if len(self.masks) < 2:
            raise ValueError(f"a schedule leads from the student to the teacher, got {len(self.masks)} mask(s)")
        if any(len(mask) != self.num_blocks for mask in self.masks):
            raise ValueError(f"the masks of a schedule must be of one length, got {', '.join(map(str, self.masks))}")
        first, last = self.masks[0], self.masks[-1]
        if first.blocks("teacher") or last.blocks("student"):
            raise ValueError(f"a schedule leads from the student to the teacher, got {first} first and {last} last")
        for before, after in zip(self.masks, self.masks[1:], strict=False):
            if not set(before.blocks("teacher")) < set(after.blocks("teacher")):
                raise ValueError(
                    f"each stage must keep the teacher's blocks and add to them, but {after} comes after {before}"
                )

    @classmethod
    def of(cls, masks: Iterable[str | Sources]) -> Schedule:
        """The schedule of these masks.

        Raises:
            ValueError: If a mask is malformed, or they are no schedule.
        """
        return cls(tuple(mask if isinstance(mask, Sources) else Sources(mask) for mask in masks))

    @classmethod
    def prefixes(cls, num_blocks: int) -> Schedule:
        """The usual schedule: stage k takes blocks 1 to k from the teacher."""
        return cls(tuple(Sources("T" * stage + "S" * (num_blocks - stage)) for stage in range(num_blocks + 1)))

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return len(self.masks[0])

    @property
    def num_stages(self) -> int:
        """The last stage: there are stages 0 to `num_stages`."""
        return len(self.masks) - 1

    @cached_property
    def is_prefixes(self) -> bool:
        """Whether stage k takes blocks 1 to k."""
        return self == Schedule.prefixes(self.num_blocks)

    def mask(self, stage: int | str) -> Sources:
        """The mask of a stage, which may be `"teacher"` for the last.

        Raises:
            ValueError: If there is no such stage.
        """
        number = self.num_stages if stage == "teacher" else stage
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= self.num_stages:
            raise ValueError(f"stage must be a whole number from 0 to {self.num_stages} or 'teacher', got {stage!r}")
        return self.masks[number]

    def stage_of(self, sources: Sources) -> int | None:
        """The stage that takes a mask's path; None if no stage does."""
        return self._stages.get(sources.mask)

    @cached_property
    def _stages(self) -> dict[str, int]:
        return {mask.mask: stage for stage, mask in enumerate(self.masks)}

    def __iter__(self) -> Iterator[Sources]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)
