"""Masks over {S, T}^N: which network each block of a path comes from (pure Python).

Notation: N blocks; boundary i (1 <= i < N) lies after block i. `T` is the teacher, `S` the student.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

Role = Literal["teacher", "student"]
Direction = Literal["encoder", "decoder"]


class Piece(NamedTuple):
    """A part of a model that is fetched, attached and released as one.

    Args:
        kind: A block of the teacher or the student, or a converter.
        number: The block's or the boundary's, from 1. A network's embedder belongs to its first
            block, its head to its last.
    """

    kind: Literal["teacher", "student", "encoder", "decoder"]
    number: int

    @property
    def prefix(self) -> str:
        """What stands before the names of its tensors in a model's state dict."""
        return f"{self.kind}." if self.kind in ("teacher", "student") else f"{self.kind}s.{self.number}."

    def __str__(self) -> str:
        return f"{self.kind} {'block ' if self.kind in ('teacher', 'student') else ''}{self.number}"


ROLE_OF: dict[str, Role] = {"S": "student", "T": "teacher"}


@dataclass(frozen=True)
class Sources:
    """A sources mask, one letter a block: `Sources("TTSS")` takes blocks 1 and 2 from the teacher.

    Args:
        mask: A non-empty string of the letters `S` and `T`.

    Raises:
        ValueError: If `mask` is empty or holds another letter.
    """

    mask: str

    def __post_init__(self) -> None:
        if not isinstance(self.mask, str) or not self.mask or set(self.mask) - set("ST"):
            raise ValueError(
                f"invalid sources mask {self.mask!r}: give one letter a block, 'T' for the teacher and "
                "'S' for the student, such as 'TTSS'"
            )

    @classmethod
    def prefix(cls, stage: int, num_stages: int) -> Sources:
        """The mask of a stage: the first `stage` of `num_stages` blocks come from the teacher.

        Raises:
            ValueError: If `stage` is not in 0..`num_stages`.
        """
        if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage <= num_stages:
            raise ValueError(f"stage must be a whole number from 0 to {num_stages}, got {stage!r}")
        return cls("T" * stage + "S" * (num_stages - stage))

    @classmethod
    def of(cls, sources: str | Sources, num_stages: int) -> Sources:
        """`sources` as a mask of `num_stages` letters.

        Raises:
            ValueError: If it is malformed or of another length.
        """
        mask = sources if isinstance(sources, Sources) else cls(sources)
        if len(mask.mask) != num_stages:
            raise ValueError(
                f"sources mask {mask.mask!r} has {len(mask.mask)} letters, but the model has {num_stages} blocks"
            )
        return mask

    @classmethod
    def all(cls, num_stages: int) -> list[Sources]:
        """All 2^N masks, the student's first and the teacher's last."""
        return [cls("".join(letters)) for letters in product("ST", repeat=num_stages)]

    def __str__(self) -> str:
        return self.mask

    def __len__(self) -> int:
        return len(self.mask)

    @cached_property
    def stage(self) -> int | None:
        """The stage, if the teacher's blocks are a prefix; None for any other mask."""
        stage = self.mask.count("T")
        return stage if self.mask.startswith("T" * stage) else None

    @cached_property
    def is_mixed(self) -> bool:
        """Whether blocks of both networks are on the path."""
        return len(set(self.mask)) == 2

    def blocks(self, role: Role) -> tuple[int, ...]:
        """The block numbers (from 1) that come from `role`."""
        return tuple(i for i, letter in enumerate(self.mask, start=1) if ROLE_OF[letter] == role)

    @cached_property
    def changes(self) -> tuple[tuple[int, Direction], ...]:
        """The boundaries where the source changes, each with the converter that stands there.

        An encoder leads from teacher to student, a decoder from student to teacher.
        """
        found: list[tuple[int, Direction]] = []
        for i, (before, after) in enumerate(zip(self.mask, self.mask[1:], strict=False), start=1):
            if before != after:
                found.append((i, "encoder" if before == "T" else "decoder"))
        return tuple(found)

    @cached_property
    def pieces(self) -> frozenset[Piece]:
        """Everything that the path of this mask runs through."""
        blocks = (Piece(ROLE_OF[letter], i) for i, letter in enumerate(self.mask, start=1))
        converters = (Piece(direction, i) for i, direction in self.changes)
        return frozenset((*blocks, *converters))

    @cached_property
    def converted_blocks(self) -> tuple[int, ...]:
        """The blocks after the first change: those that see features of a converter."""
        first = self.changes[0][0] if self.changes else len(self.mask)
        return tuple(range(first + 1, len(self.mask) + 1))
