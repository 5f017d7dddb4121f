"""Masks over {S, Q, T}^N: which network each block of a path comes from (pure Python).

Notation: N blocks; boundary i (1 <= i < N) lies after block i. `S` is the student, `T` the teacher, `Q` the teacher in
low precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

Role = Literal["teacher", "student"]
Direction = Literal["encoder", "decoder"]
DIRECTIONS: tuple[Direction, Direction] = ("encoder", "decoder")


class Letter(NamedTuple):
    """What a letter of a mask stands for.

    Args:
        role: Whose block it is.
        precision: Whether its weights are the network's own, or those of its tier of low precision.
    """

    role: Role
    precision: Literal["exact", "low"] = "exact"


# From the worst to the best: stages go up in this order.
LETTERS: dict[str, Letter] = {"S": Letter("student"), "Q": Letter("teacher", "low"), "T": Letter("teacher")}
ROLE_OF: dict[str, Role] = {letter: meaning.role for letter, meaning in LETTERS.items()}
# The name of the part that both networks share, if they do. No module has it: names in Python have no hyphens.
WITH_STUDENT = "with-student"


class PartId(NamedTuple):
    """Which part of a model: what is fetched, attached and released as one.

    Args:
        kind: A block of the teacher or the student, one of the teacher in low precision, a converter, or tensors that
            blocks share.
        number: The block's or the boundary's, from 1; 0 for what is shared. A network's embedder belongs to its first
            block, its head to its last.
        name: Of what is shared, the name of the tensor or module in its network; `WITH_STUDENT` of the embedder that
            both networks share.
        network: Of what is shared, whose it is.
    """

    kind: Literal["teacher", "student", "quantised", "encoder", "decoder", "shared"]
    number: int
    name: str = ""
    network: Literal["teacher", "student", ""] = ""

    @property
    def role(self) -> Role | None:
        """The network that it is of; None for a converter."""
        if self.kind == "teacher" or self.kind == "student":
            return self.kind
        if self.kind == "quantised":
            return "teacher"
        return self.network or None

    def __str__(self) -> str:
        if self.name == WITH_STUDENT:
            return f"{self.network} embedder (shared with the student)"
        if self.kind == "shared":
            return f"{self.network} {self.name} (shared by blocks)"
        if self.kind == "quantised":
            return f"teacher block {self.number} in low precision"
        return f"{self.kind} {'block ' if self.role else ''}{self.number}"


@dataclass(frozen=True)
class Sources:
    """A sources mask, one letter a block: `Sources("TTSS")` takes blocks 1 and 2 from the teacher.

    Args:
        mask: A non-empty string of letters of `LETTERS`.

    Raises:
        ValueError: If `mask` is empty or holds another letter.
    """

    mask: str

    def __post_init__(self) -> None:
        if not isinstance(self.mask, str) or not self.mask or set(self.mask) - LETTERS.keys():
            raise ValueError(
                f"invalid sources mask {self.mask!r}: give one letter a block, 'T' for the teacher, 'S' for the "
                "student and 'Q' for the teacher in low precision, such as 'TTSS'"
            )

    @classmethod
    def of(cls, sources: str | Sources, num_blocks: int) -> Sources:
        """`sources` as a mask of `num_blocks` letters.

        Raises:
            ValueError: If it is malformed or of another length.
        """
        mask = sources if isinstance(sources, Sources) else cls(sources)
        if len(mask.mask) != num_blocks:
            raise ValueError(
                f"sources mask {mask.mask!r} has {len(mask.mask)} letters, but the model has {num_blocks} blocks"
            )
        return mask

    @classmethod
    def all(cls, num_blocks: int) -> list[Sources]:
        """All 2^N masks of student and teacher, the student's first and the teacher's last."""
        return [cls("".join(letters)) for letters in product("ST", repeat=num_blocks)]

    def __str__(self) -> str:
        return self.mask

    def __len__(self) -> int:
        return len(self.mask)

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """The network that each block comes from."""
        return tuple(ROLE_OF[letter] for letter in self.mask)

    @cached_property
    def is_mixed(self) -> bool:
        """Whether blocks of both networks are on the path."""
        return len(set(self.roles)) == 2

    @cached_property
    def exact(self) -> Sources:
        """The same path with the teacher's own blocks in place of those of low precision."""
        return Sources(self.mask.replace("Q", "T"))

    @cached_property
    def low_blocks(self) -> tuple[int, ...]:
        """The block numbers (from 1) that come from the teacher in low precision."""
        return tuple(i for i, letter in enumerate(self.mask, start=1) if letter == "Q")

    def blocks(self, role: Role) -> tuple[int, ...]:
        """The block numbers (from 1) that come from `role`."""
        return tuple(i for i, other in enumerate(self.roles, start=1) if other == role)

    @cached_property
    def changes(self) -> tuple[tuple[int, Direction], ...]:
        """The boundaries where the source changes, each with the converter that stands there.

        An encoder leads from teacher to student, a decoder from student to teacher.
        """
        found: list[tuple[int, Direction]] = []
        for i, (before, after) in enumerate(zip(self.roles, self.roles[1:], strict=False), start=1):
            if before != after:
                found.append((i, "encoder" if before == "teacher" else "decoder"))
        return tuple(found)

    @cached_property
    def part_ids(self) -> frozenset[PartId]:
        """Everything that the path of this mask runs through."""
        low = self.low_blocks
        blocks = (PartId("quantised" if i in low else role, i) for i, role in enumerate(self.roles, start=1))
        converters = (PartId(direction, i) for i, direction in self.changes)
        return frozenset((*blocks, *converters))

    @cached_property
    def converted_blocks(self) -> tuple[int, ...]:
        """The blocks after the first change: those that see features of a converter."""
        first = self.changes[0][0] if self.changes else len(self.mask)
        return tuple(range(first + 1, len(self.mask) + 1))
