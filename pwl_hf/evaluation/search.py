"""In which order a teacher's blocks should come: the schedule of the least area under a loss over bytes (pure Python).

With l(m) the loss of mask m and d_k the bytes that stage k adds to those before it, that is the sum over k < N of
l(m_k) d_(k+1): what is lost while the bytes of the next stage come. Each step turns one block of a mask into a later
letter of the ladder, `S` into `T`.

Notation: N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Literal

from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.modeling.sources import Sources

Search = Literal["all", "swaps"]
SEARCHES: tuple[Search, ...] = ("all", "swaps")
# What a block may be, in the order in which it may become so.
LADDER = "ST"
# A pass over all 2^N masks runs 2^(N+1) - 2 blocks, where the teacher's runs N: 21 times as many at 6 blocks.
MAX_BLOCKS_OF_ALL = 6

Measure = Callable[[Sequence[str]], Mapping[str, float]]
"""The loss of each of some masks."""


class StageBytes:
    """The bytes of the files that a mask adds to those that are there.

    No schedule gives up a block of the teacher's, so it needs nothing again that it has released. Of two masks that
    follow each other the second adds those of its files that the first has not, whatever came before them.

    Args:
        manifest: The manifest that lists the files: shards, converters, shared tensors, statistics of masks.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._files: dict[str, dict[str, int]] = {}

    def added(self, before: str, after: str) -> int:
        """The bytes that a mask adds to one that comes before it in a schedule."""
        known = self._of(before)
        return sum(size for path, size in self._of(after).items() if path not in known)

    def totals(self, masks: Sequence[str]) -> tuple[int, ...]:
        """The bytes of all files that are loaded at each stage of a schedule."""
        found = [sum(self._of(masks[0]).values())]
        for before, after in pairwise(masks):
            found.append(found[-1] + self.added(before, after))
        return tuple(found)

    def cost(self, masks: Sequence[str], losses: Mapping[str, float]) -> float:
        """The area under the loss over the bytes of a schedule."""
        return sum(losses[before] * self.added(before, after) for before, after in pairwise(masks))

    def _of(self, mask: str) -> dict[str, int]:
        if mask not in self._files:
            self._files[mask] = {entry.path: entry.bytes for entry in self._manifest.files_for(Sources(mask))}
        return self._files[mask]


def search_for(num_blocks: int) -> Search:
    """How the best schedule of so many blocks is searched for by default."""
    return "all" if num_blocks <= MAX_BLOCKS_OF_ALL else "swaps"


def best_schedule(measure: Measure, stage_bytes: StageBytes, present: Schedule, search: Search) -> list[str]:
    """Find the schedule that turns one block at a time and has the least area under the loss.

    Args:
        measure: Measures masks; called with those that it was not called with before.
        stage_bytes: What each stage adds.
        present: The schedule that there is.
        search: `"all"` measures all 2^N masks and finds the best (see `shortest`); `"swaps"` measures the stages that
            there are, those from first to last, and exchanges of two (see `swaps`).

    Returns:
        The masks; the present ones, then those from first to last, where nothing is better.

    Raises:
        ValueError: For another search.
    """
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    num_blocks = present.num_blocks
    known = [[mask.mask for mask in schedule] for schedule in (present, Schedule.prefixes(num_blocks))]
    wanted = all_masks(num_blocks) if search == "all" else dict.fromkeys(mask for masks in known for mask in masks)
    losses = dict(measure(list(wanted)))
    if search == "all":
        known.append(shortest(losses, stage_bytes, num_blocks))
    else:
        first = min(filter(_is_stepwise, known), key=lambda masks: stage_bytes.cost(masks, losses))
        known.append(swaps(measure, losses, stage_bytes, first))
    return min(known, key=lambda masks: stage_bytes.cost(masks, losses))


def shortest(losses: Mapping[str, float], stage_bytes: StageBytes, num_blocks: int) -> list[str]:
    """The best order of all N!, exactly: the shortest path over all masks from the student's to the teacher's.

    A step from m to m' is as long as the bytes that m' adds, times the loss of m.

    Args:
        losses: That of each mask.
        stage_bytes: What each stage adds.
        num_blocks: N.
    """
    masks = all_masks(num_blocks)
    lengths, before = {masks[0]: 0.0}, {masks[0]: ""}
    # Each mask comes behind all that lead to it: the shortest way to it is known.
    for mask in masks:
        for after in raised(mask):
            length = lengths[mask] + losses[mask] * stage_bytes.added(mask, after)
            if after not in lengths or length < lengths[after]:
                lengths[after], before[after] = length, mask
    path = [masks[-1]]
    while before[path[-1]]:
        path.append(before[path[-1]])
    return path[::-1]


def swaps(measure: Measure, losses: dict[str, float], stage_bytes: StageBytes, first: Sequence[str]) -> list[str]:
    """The schedule that no exchange of two blocks that follow each other makes better.

    An exchange is one other mask, so a round measures N - 1 at most. Over the trainings of the table `order`
    (`python -m benchmarks recipes order`) it ends at the best area; to take one block after the other, each the best
    next one, ends up to 16.7 points below it.

    Args:
        measure: Measures masks.
        losses: What is measured already, those of `first` among them; what is measured is added to it.
        stage_bytes: What each stage adds.
        first: Where it begins: a schedule that turns one block at a time.
    """
    best = list(first)
    while True:
        others = [
            [*best[:stage], other, *best[stage + 1 :]]
            for stage in range(1, len(best) - 1)
            for other in raised(best[stage - 1])
            if other != best[stage] and best[stage + 1] in raised(other)
        ]
        if new := list(dict.fromkeys(mask for masks in others for mask in masks if mask not in losses)):
            losses |= measure(new)
        # Of equals the one that there is.
        better = min([best, *others], key=lambda masks: stage_bytes.cost(masks, losses))
        if better == best:
            return best
        best = better


def all_masks(num_blocks: int) -> list[str]:
    """All masks in an order in which each comes behind those that lead to it, the student's first."""
    masks = map("".join, product(LADDER, repeat=num_blocks))
    return sorted(masks, key=lambda mask: sum(map(LADDER.index, mask)))


def raised(mask: str) -> Iterator[str]:
    """The masks that can come next: one block is a later letter, the first block's first."""
    for place, letter in enumerate(mask):
        for later in LADDER[LADDER.index(letter) + 1 :]:
            yield mask[:place] + later + mask[place + 1 :]


def _is_stepwise(masks: Sequence[str]) -> bool:
    return all(after in raised(before) for before, after in pairwise(masks))
