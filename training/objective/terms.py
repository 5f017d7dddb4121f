"""The terms of the objective, each a small thing to be called on a step's passes.

Notation: N blocks, boundaries 1..N-1; t_i and s_i are the features that teacher and student have at boundary i,
e_i and d_i the converters there; D is `feature_distance`; a path's loss is `distillation_loss`.

Most are after arXiv 2509.22319 (Progressive Weight Loading) and its authors' code; where ours differ, it is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from pwl_hf.training.objective.losses import distillation_loss, feature_distance
from pwl_hf.training.objective.masks import Distribution, draw_masks, prefix_masks
from pwl_hf.training.objective.passes import ALL, Passes


class Term(Protocol):
    """A part of the loss."""

    @property
    def name(self) -> str:
        """What it is called in logs."""

    def __call__(self, passes: Passes) -> torch.Tensor | None:
        """The term's value, a scalar; None where it does not apply (at this step, to this model)."""


@dataclass(frozen=True)
class Periodic:
    """A term at some steps alone: at the others it costs nothing.

    Args:
        term: The term.
        every: It is there at every n-th step, from the first.
    """

    term: Term
    every: int

    @property
    def name(self) -> str:
        """The term's."""
        return self.term.name

    def __call__(self, passes: Passes) -> torch.Tensor | None:
        """The term's value; None at other steps."""
        return None if passes.step % self.every else self.term(passes)


@dataclass(frozen=True)
class PathLoss:
    """The loss of a path: alpha times the labels' cross entropy, 1 - alpha times the teacher's soft answers.

    Args:
        alpha: The weight of the labels, 0 to 1; with 0, labels are not looked at and need not be there.
        temperature: T > 0.
    """

    alpha: float
    temperature: float

    def __call__(self, passes: Passes, mask: str, rows: slice = ALL) -> torch.Tensor:
        """The loss of a mask's path, over all samples or some; of tokens, over those that count.

        Raises:
            ValueError: If the batch has no labels and alpha is not 0.
        """
        if self.alpha and passes.labels is None:
            raise ValueError(f"alpha={self.alpha} weighs labels, but the samples have none: set alpha to 0")
        teacher = passes.teacher.logits[rows] if self.alpha < 1 else None
        labels = None if passes.labels is None else passes.labels[rows]
        logits = passes.logits(mask, rows)
        if logits.ndim > 2:
            counted = passes.counted(rows)
            logits = logits[counted]
            labels, teacher = (None if found is None else found[counted] for found in (labels, teacher))
            if not len(logits):
                # A part of a batch without a word: no loss, and no mean over nothing.
                return logits.sum()
        return distillation_loss(logits, labels, teacher, self.alpha, self.temperature)


@dataclass(frozen=True)
class StudentLoss:
    """The student's own path."""

    loss: PathLoss
    name: ClassVar[str] = "student"

    def __call__(self, passes: Passes) -> torch.Tensor:
        """The loss of S^N."""
        return self.loss(passes, "S" * passes.num_blocks)


@dataclass(frozen=True)
class PrefixLoss:
    """The mean loss of all stages between the student and the teacher.

    Ours: the method trains one of them at some steps. The teacher's features are there already, so a step costs
    little more than the student's own.

    Args:
        loss: Of each path.
        share: Each stage sees every n-th image of the batch, another part at every step.
        stages: The masks of these stages; as the method has them, T^k S^(N-k), by default.
    """

    loss: PathLoss
    share: int = 1
    stages: tuple[str, ...] | None = None
    name: ClassVar[str] = "prefix"

    def __call__(self, passes: Passes) -> torch.Tensor | None:
        """The mean over the stages, by default mean_k of the loss of T^k S^(N-k), 0 < k < N; None if there is none."""
        stages = prefix_masks(passes.num_blocks) if self.stages is None else self.stages
        return _mean_loss(passes, self.loss, stages, self.share)


@dataclass(frozen=True)
class MaskLoss:
    """The mean loss of masks drawn for the step.

    That these are given the labels as well is ours (`alpha` 0 is the method's own).

    Args:
        loss: Of each path.
        groups: What the masks are drawn from.
        count: How many at once.
        share: Each mask sees every n-th image of the batch.
    """

    loss: PathLoss
    groups: Distribution
    count: int = 1
    share: int = 1
    name: ClassVar[str] = "mask"

    def __call__(self, passes: Passes) -> torch.Tensor | None:
        """The mean over the masks of the step; None where there is no such mask."""
        masks = draw_masks(self.groups, self.count, passes.seed, passes.step)
        return _mean_loss(passes, self.loss, masks, self.share)


@dataclass(frozen=True)
class Synchronisation:
    """mean_i D(e_i(t_i), s_i) + D(d_i(s_i), t_i): converted features are those they stand for.

    Args:
        normalize: See `feature_distance`.
        share: Of every n-th image of the batch, others at every step.
    """

    normalize: bool = False
    share: int = 1
    name: ClassVar[str] = "sync"

    def __call__(self, passes: Passes) -> torch.Tensor | None:
        """The term; None if there is one block."""
        return _mean(
            feature_distance(at.encoded, at.student, self.normalize, at.kept)
            + feature_distance(at.decoded, at.teacher, self.normalize, at.kept)
            for at in passes.boundaries(self.share)
        )


@dataclass(frozen=True)
class Reconstruction:
    """mean_i D(d_i(e_i(t_i)), t_i) + D(e_i(d_i(s_i)), s_i): there and back again changes nothing.

    Args:
        normalize: See `feature_distance`.
        share: Of every n-th image of the batch, others at every step.
    """

    normalize: bool = False
    share: int = 1
    name: ClassVar[str] = "recon"

    def __call__(self, passes: Passes) -> torch.Tensor | None:
        """The term; None if there is one block."""
        return _mean(
            feature_distance(at.decode(at.encoded), at.teacher, self.normalize, at.kept)
            + feature_distance(at.encode(at.decoded), at.student, self.normalize, at.kept)
            for at in passes.boundaries(self.share)
        )


def _mean_loss(passes: Passes, loss: PathLoss, masks: Sequence[str], share: int) -> torch.Tensor | None:
    return _mean(loss(passes, mask, passes.part(share, number)) for number, mask in enumerate(masks))


def _mean(values: Iterable[torch.Tensor]) -> torch.Tensor | None:
    found = list(values)
    return torch.stack(found).mean() if found else None
