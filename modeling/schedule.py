"""The schedule of a model: the mask of each stage, from the student to the teacher (pure Python).

Where the teacher is there in low precision too, a stage is a rung of a ladder: a block may go from the student to the
teacher in low precision (`Q`), and from there to the teacher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from .sources import LETTERS, Sources

_RANKS = {letter: rank for rank, letter in enumerate(LETTERS)}


@dataclass(frozen=True)
class Schedule:
    """The masks of the stages in order, each with better blocks than the one before it, and none with a worse.

    Blocks may come in any order. Without a reason for another one they come from the first to the last: `prefixes`.

    Args:
        masks: The student's mask, the stages between, the teacher's mask.

    Raises:
        ValueError: If they do not lead from the student to the teacher, or a stage gives up a block for a worse one.

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
        if set(first.mask) != {"S"} or set(last.mask) != {"T"}:
            raise ValueError(f"a schedule leads from the student to the teacher, got {first} first and {last} last")
        for before, after in zip(self.masks, self.masks[1:], strict=False):
            ranks = [(_RANKS[a], _RANKS[b]) for a, b in zip(before.mask, after.mask, strict=True)]
            if before == after or any(a > b for a, b in ranks):
                raise ValueError(
                    "each stage must keep its blocks or take better ones (S, Q, T), and at least one, but "
                    f"{after} comes after {before}"
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

    def ladder(self) -> Schedule:
        """The rungs over the same order of blocks: all of them in low precision first, then each made exact.

        That is what dynamic programming over all ladders finds by area under accuracy over bytes.

        Example:

            >>> " ".join(map(str, Schedule.prefixes(2).ladder()))
            'SS QS QQ TQ TT'
        """
        exact = [mask.exact for mask in self.masks]
        low = [Sources(mask.mask.replace("T", "Q")) for mask in exact]
        refined = [Sources("".join("T" if letter == "T" else "Q" for letter in mask.mask)) for mask in exact[1:]]
        return Schedule(tuple(dict.fromkeys([*low, *refined])))

    def without_tier(self) -> Schedule:
        """The stages that are left where there is no low precision: each block comes as the teacher's own."""
        return Schedule(tuple(dict.fromkeys(mask.exact for mask in self.masks)))

    @cached_property
    def has_tier(self) -> bool:
        """Whether a stage takes a block in low precision."""
        return any(mask.low_blocks for mask in self.masks)

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
