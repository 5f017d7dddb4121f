"""What the terms of one step share: the inputs, and the paths that were run over them.

Notation: N blocks; B samples; K labels; of texts whose words have a label each, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from pwl_hf.data.names import NO_LABEL
from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.finite import Batch, by_name, count_of
from pwl_hf.modeling.routes.shared_paths import PathOutput, SharedPaths

# All samples of a batch.
ALL = slice(None)


@dataclass(frozen=True)
class Boundary:
    """The features of both networks at a boundary, and what the converters there make of them.

    Args:
        teacher: t, what the teacher has there.
        student: s, what the student has there.
        encode: e, the encoder: to the student's width.
        decode: d, the decoder: to the teacher's width.
        kept: (B, tokens), bool: the tokens that are no padding; None for all.
    """

    teacher: torch.Tensor
    student: torch.Tensor
    encode: Callable[[torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    kept: torch.Tensor | None = None

    @cached_property
    def encoded(self) -> torch.Tensor:
        """e(t), like s."""
        return self.encode(self.teacher)

    @cached_property
    def decoded(self) -> torch.Tensor:
        """d(s), like t."""
        return self.decode(self.student)


@dataclass(frozen=True)
class Passes:
    """The passes of a step, each run when a term first asks for it.

    Args:
        model: A PWL model with everything resident.
        inputs: What the model would be called with, by name, or a tensor: the main input.
        labels: (B,), int64, or of tokens (B, L), -100 where none counts; None where the teacher's answers alone are
            learnt from.
        step: The step's number, the same in every process.
        seed: The run's seed.
        sample_ids: (B,), int64: which samples these are, for terms that know something of each.
        shared: Let paths share the blocks that they have in common (see `shared_paths`).
    """

    model: PWLPreTrainedModel
    inputs: Batch
    labels: torch.Tensor | None = None
    step: int = 0
    seed: int = 0
    sample_ids: torch.Tensor | None = None
    shared: bool = True
    _alone: dict[str, PathOutput] = field(default_factory=dict, init=False, repr=False)
    _boundaries: dict[int, list[Boundary]] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_blocks(self) -> int:
        """N."""
        return self.model.num_blocks

    @cached_property
    def teacher(self) -> PathOutput:
        """The teacher's `logits` (B, K) and `hidden_states` (N tensors), without gradients."""
        with torch.no_grad():
            return self.path("T" * self.num_blocks)

    @cached_property
    def student(self) -> PathOutput:
        """The student's `logits` (B, K) and `hidden_states` (N tensors)."""
        return self.path("S" * self.num_blocks)

    def path(self, mask: str) -> PathOutput:
        """The `logits` and `hidden_states` of a mask."""
        if self.shared:
            return self._paths(mask)
        if mask not in self._alone:
            found = self.model(**self._named, sources=mask, output_hidden_states=True, return_dict=True)
            self._alone[mask] = PathOutput(found.logits, found.hidden_states)
        return self._alone[mask]

    def part(self, share: int, number: int = 0) -> slice:
        """Every n-th sample, others at every step and for every number; all of them if the share is 1."""
        # A batch smaller than the share: there must be a sample.
        share = min(share, count_of(self._named, self.model.main_input_name))
        return slice((self.step + number) % share, None, share) if share > 1 else ALL

    def boundaries(self, share: int = 1) -> list[Boundary]:
        """The boundaries 1 to N-1, for every n-th sample."""
        if share not in self._boundaries:
            rows, kept = self.part(share), self.kept
            features = zip(self.teacher.hidden_states[:-1], self.student.hidden_states[:-1], strict=True)
            self._boundaries[share] = [
                Boundary(
                    teacher[rows],
                    student[rows],
                    self.model.encoders[str(i)],
                    self.model.decoders[str(i)],
                    None if kept is None else kept[rows],
                )
                for i, (teacher, student) in enumerate(features, start=1)
            ]
        return self._boundaries[share]

    def logits(self, mask: str, rows: slice = ALL) -> torch.Tensor:
        """The logits of a mask, of all samples (B, K) or of some.

        Of some, what lies before the mask's first change is run for all the same, and what comes after for them
        alone: BatchNorms there take the statistics of fewer samples.
        """
        if rows == ALL or not self.shared:
            return self.path(mask).logits[rows]
        return self._paths.logits_of(mask, rows)

    def counted(self, rows: slice = ALL) -> torch.Tensor:
        """Of texts whose words have a label each: the tokens whose answers count, (B, L), bool.

        Those with a label, or of data without labels all that are no padding.
        """
        if self.labels is not None:
            return self.labels[rows] != NO_LABEL
        if self.kept is not None:
            return self.kept[rows]
        logits = self.teacher.logits[rows]
        return torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)

    @cached_property
    def kept(self) -> torch.Tensor | None:
        """Which features are no padding, (B, tokens), bool: those of all boundaries are of the same tokens."""
        plan = self.model.parts.networks.blueprints["teacher"]
        return plan.family.not_padding(plan.config, self.teacher.hidden_states[0], self._named)

    @cached_property
    def _paths(self) -> SharedPaths:
        return self.model.shared_paths(self._named)

    @cached_property
    def _named(self) -> dict[str, Any]:
        return by_name(self.inputs, self.model.main_input_name)
