"""Several paths over the same inputs, for training and for measuring many masks: what they have in common runs once.

Notation: N blocks; B samples; K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from ..families.base import Features, Inputs
    from .route import Route


class PathOutput(NamedTuple):
    """What a path gives.

    Args:
        logits: (B, K).
        hidden_states: The output of each of the N blocks, in its own width.
    """

    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


class SharedPaths:
    """The paths of one batch, each run when first asked for.

    A T->S path begins with what the teacher computes anyway, so all stages together cost one pass of the
    teacher and the student's last blocks; all 2^N masks cost 2^(N+1) - 2 blocks in place of N 2^N.

    Blocks that two masks begin with are common to them, as long as their BatchNorm statistics are: those of a
    mask with statistics of its own are common up to its first converter, unless the batch's are taken.

    Args:
        route_for: The route of a mask.
        inputs: What the model would be called with, by the names of its `forward`.
        num_blocks: N.
        batch_statistics: Whether BatchNorms take the batch's statistics, so that paths differ in none.
        leader: A mask that is run before any other that begins with the same letter, so that what they have in
            common is run as its: it may be the one that updates a network's running statistics.
    """

    def __init__(
        self,
        route_for: Callable[[str], Route],
        inputs: Inputs,
        num_blocks: int,
        *,
        batch_statistics: bool,
        leader: str | None = None,
    ) -> None:
        self._route_for = route_for
        self._inputs = inputs
        self._num_blocks = num_blocks
        self._batch_statistics = batch_statistics
        self._leader = leader
        self._reached: dict[tuple[str, str | None], Features] = {}
        self._outputs: dict[str, PathOutput] = {}

    def __call__(self, sources: str) -> PathOutput:
        """The path of a mask.

        Returns:
            `logits` (B, K) and `hidden_states`, the output of each of the N blocks in its own width.

        Raises:
            StageError: If the mask needs what is not resident.
            ValueError: If it is malformed.
        """
        if sources not in self._outputs:
            if self._leader is not None and sources[:1] == self._leader[0] and sources != self._leader:
                self(self._leader)
            self._outputs[sources] = self._run(self._route_for(sources))
        return self._outputs[sources]

    def logits_of(self, sources: str, rows: slice) -> torch.Tensor:
        """The logits of a mixed mask for some of the samples, the blocks before its first change run for all.

        Those blocks are of one whole network, whose path is run anyway in training; what comes after is this
        mask's alone, and as cheap as its samples are few.

        Args:
            sources: The mask.
            rows: Which samples.

        Returns:
            (as many samples as there are rows, K).

        Raises:
            StageError: If the mask needs what is not resident.
            ValueError: If it is malformed, or of one network.
        """
        route = self._route_for(sources)
        if not route.sources.is_mixed:
            raise ValueError(f"sources {sources!r} is one whole network: its logits are those of all samples")
        change = route.sources.changes[0][0]
        self(sources[0] * self._num_blocks)
        before = self._reached[sources[:change], None]
        features, logits = before._replace(tensor=before.tensor[rows]), None
        count = len(before.tensor)
        inputs = {name: _rows_of(value, rows, count) for name, value in self._inputs.items()}
        for block in range(change + 1, self._num_blocks + 1):
            (features,), logits = route.run_block(block, features, inputs)
        return logits  # type: ignore[return-value]

    def _run(self, route: Route) -> PathOutput:
        mask = route.sources.mask
        features: Features | None = None
        logits: torch.Tensor | None = None
        outputs = []
        for block in range(1, self._num_blocks + 1):
            # With statistics of its own, a mask shares nothing behind its first converter.
            own = route.has_own_statistics and not self._batch_statistics
            alone = own and block in route.sources.converted_blocks
            key = (mask[:block], mask if alone else None)
            if key not in self._reached:
                (self._reached[key],), logits = route.run_block(block, features, self._inputs)
            features = self._reached[key]
            outputs.append(features.tensor)
        # The last block ends this mask alone, so it has just run.
        return PathOutput(logits=logits, hidden_states=tuple(outputs))  # type: ignore[arg-type]


def _rows_of(value: object, rows: slice, count: int) -> object:
    """Some of `count` samples of an input; what is no tensor of samples holds for all."""
    return value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
