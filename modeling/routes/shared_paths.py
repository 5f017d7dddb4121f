"""Several paths over the same images, for training and for measuring many masks: what they have in common runs once.

Notation: N blocks; B images of C channels, H x W pixels; K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from ..families.base import Features
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
        pixel_values: (B, C, H, W), floating.
        num_stages: N.
        batch_statistics: Whether BatchNorms take the batch's statistics, so that paths differ in none.
        leader: A mask that is run before any other that begins with the same letter, so that what they have in
            common is run as its: it may be the one that updates a network's running statistics.
        interpolate_pos_encoding: As in the model's `forward`.
    """

    def __init__(
        self,
        route_for: Callable[[str], Route],
        pixel_values: torch.Tensor,
        num_stages: int,
        *,
        batch_statistics: bool,
        leader: str | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> None:
        self._route_for = route_for
        self._pixel_values = pixel_values
        self._num_stages = num_stages
        self._batch_statistics = batch_statistics
        self._leader = leader
        self._interpolate = interpolate_pos_encoding
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
        """The logits of a mixed mask for some of the images, the blocks before its first change run for all.

        Those blocks are of one whole network, whose path is run anyway in training; what comes after is this
        mask's alone, and as cheap as its images are few.

        Args:
            sources: The mask.
            rows: Which images.

        Returns:
            (as many images as there are rows, K).

        Raises:
            StageError: If the mask needs what is not resident.
            ValueError: If it is malformed, or of one network.
        """
        route = self._route_for(sources)
        if not route.sources.is_mixed:
            raise ValueError(f"sources {sources!r} is one whole network: its logits are those of all images")
        change = route.sources.changes[0][0]
        self(sources[0] * self._num_stages)
        before = self._reached[sources[:change], None]
        features = before._replace(tensor=before.tensor[rows])
        for block in range(change + 1, self._num_stages + 1):
            features = route.run_block(block, features)
        return route.head(features)

    def _run(self, route: Route) -> PathOutput:
        mask = route.sources.mask
        features: Features | None = None
        outputs = []
        for block in range(1, self._num_stages + 1):
            # With statistics of its own, a mask shares nothing behind its first converter.
            own = route.has_own_statistics and not self._batch_statistics
            alone = own and block in route.sources.converted_blocks
            key = (mask[:block], mask if alone else None)
            if key not in self._reached:
                before = route.embedder(self._pixel_values, self._interpolate) if features is None else features
                self._reached[key] = route.run_block(block, before)
            features = self._reached[key]
            outputs.append(features.tensor)
        return PathOutput(logits=route.head(self._reached[key]), hidden_states=tuple(outputs))
