"""What a step minimises, as a module: one forward pass a step, as distributed training needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from pwl_hf.evaluation.labels import check_one_label
from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.finite import Batch, by_name
from pwl_hf.training.images.mixup import Mixup
from pwl_hf.training.networks.identity import set_identity
from pwl_hf.training.objective.attention import AttentionTransfer
from pwl_hf.training.objective.masks import distribution, stage_masks
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.objective.passes import Passes
from pwl_hf.training.objective.relations import RelationLoss
from pwl_hf.training.objective.terms import (
    MaskLoss,
    PathLoss,
    Periodic,
    PrefixLoss,
    Reconstruction,
    StudentLoss,
    Synchronisation,
    Term,
)

Losses = dict[str, torch.Tensor]


class Distillation(nn.Module):
    """A weighted sum of terms over the paths of a PWL model.

    The teacher runs once a step, without gradients and in eval mode; paths that begin alike share what they have in
    common; and mixed paths leave the student's BatchNorm statistics alone.

    Args:
        model: A PWL model with everything resident.
        terms: Weights and terms.
        seed: The seed of what is drawn at random.
        shared_statistics: Let mixed paths update the networks' BatchNorm statistics, and run each by itself.
        teacher_drift: Put the teacher into training mode with the model. Both are of the method's own code.
        mixup: Mix training images and their labels first.

    Raises:
        ValueError: If the model does not choose one label of several for a sample.

    Example:

        >>> objective = build_objective(model, ObjectiveArguments(prefix_weight=2.0), seed=0)  # doctest: +SKIP
        >>> losses = objective(pixel_values, labels, step=0)  # doctest: +SKIP
        >>> losses["loss"].backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PWLPreTrainedModel,
        terms: Sequence[tuple[float, Term]],
        seed: int = 0,
        *,
        shared_statistics: bool = False,
        teacher_drift: bool = False,
        mixup: Mixup | None = None,
    ) -> None:
        check_one_label(model.config)
        super().__init__()
        self.model = model
        self.terms = tuple((weight, term) for weight, term in terms if weight)
        self.seed = seed
        self.shared_statistics = shared_statistics
        self.teacher_drift = teacher_drift
        self.mixup = mixup
        model.isolate_statistics(not shared_statistics)

    def train(self, mode: bool = True) -> Distillation:
        """As every module's; nothing if it is so already: Trainer asks at each step, and routes would be rebuilt."""
        if mode != self.training or mode != self.model.training:
            super().train(mode)
        return self

    def forward(
        self,
        inputs: Batch,
        labels: torch.Tensor | None = None,
        step: int = 0,
        sample_ids: torch.Tensor | None = None,
    ) -> Losses:
        """The loss of a batch.

        Args:
            inputs: What the model would be called with, by name, or a tensor: the main input.
            labels: (B,), int64, or of tokens (B, L), -100 where none counts; not needed where every alpha is 0.
            step: The step's number, for what is drawn at random: the same in every process.
            sample_ids: (B,), int64: which samples these are, for terms that know something of each.

        Returns:
            The scalar `loss`, and the terms that applied, by name and without gradients.

        Raises:
            ValueError: If labels are needed and missing, or sample_ids are.
        """
        if self.mixup is not None and self.training:
            count, main = cast(int, self.model.config.num_labels), self.model.main_input_name
            inputs = by_name(inputs, main)
            inputs[main], labels = self.mixup(
                inputs[main], labels, sample_ids, num_labels=count, seed=self.seed, step=step
            )
        if self.teacher_drift:
            self.model.teacher.train(self.training)
        passes = Passes(
            self.model,
            inputs,
            labels=labels,
            step=step,
            seed=self.seed,
            sample_ids=sample_ids,
            shared=not self.shared_statistics,
        )
        loss, found = torch.zeros((), device=self.model.device), {}
        for weight, term in self.terms:
            value = term(passes)
            if value is not None:
                loss = loss + weight * value
                found[term.name] = value.detach()
        return {"loss": loss, **found}


def build_objective(model: PWLPreTrainedModel, arguments: ObjectiveArguments, seed: int = 0) -> Distillation:
    """The objective that the options ask for.

    Args:
        model: A PWL model with everything resident; its converters are fixed with `identity_converters`.
        arguments: The options.
        seed: The seed of what is drawn at random.

    Raises:
        ValueError: If `identity_converters` is asked for and the widths differ, or a term cannot be had of the two
            networks; for `teacher_drift`, if they share an embedder.
    """
    check_drift(arguments, share_embedder=model.config.share_embedder)
    terms = build_terms(arguments, model.num_blocks, stage_masks(model.schedule))
    for weight, term in terms:
        if weight and isinstance(term, AttentionTransfer | RelationLoss):
            term.check(model)
    if arguments.identity_converters:
        set_identity(model, "identity_converters")
        model.encoders.requires_grad_(False)
        model.decoders.requires_grad_(False)
    return Distillation(
        model,
        terms,
        seed,
        shared_statistics=arguments.shared_statistics,
        teacher_drift=arguments.teacher_drift,
        mixup=None if arguments.mixup_alpha is None else Mixup(arguments.mixup_alpha, arguments.mixup_probability),
    )


def check_drift(arguments: ObjectiveArguments, *, share_embedder: bool) -> None:
    """Refuse to let a teacher drift whose embedder is the student's as well.

    Raises:
        ValueError: If that is asked for.
    """
    if arguments.teacher_drift and share_embedder:
        raise ValueError(
            "teacher_drift does not go with share_embedder: the teacher would not stay the one whose embedder the "
            "student has; leave one of them out"
        )


def build_terms(
    arguments: ObjectiveArguments, num_blocks: int, stages: Sequence[str] | None = None
) -> list[tuple[float, Term]]:
    """The weights and terms that the options ask for.

    Args:
        arguments: The options.
        num_blocks: N.
        stages: The masks of the stages between student and teacher; T^k S^(N-k) by default.
    """
    path = PathLoss(arguments.alpha, arguments.temperature)
    mask_alpha = arguments.alpha if arguments.mask_alpha is None else arguments.mask_alpha
    masks = MaskLoss(
        PathLoss(mask_alpha, arguments.temperature),
        distribution(arguments.mask_distribution, num_blocks, stages),
        count=arguments.mask_count,
        share=arguments.mask_share,
    )
    prefix = PrefixLoss(path, arguments.prefix_share, None if stages is None else tuple(stages))
    sync = Synchronisation(arguments.normalize_features, arguments.feature_share)
    recon = Reconstruction(arguments.normalize_features, arguments.feature_share)
    attention_blocks = None if arguments.attention_blocks is None else tuple(arguments.attention_blocks)
    return [
        # First, for it records the networks' passes.
        (arguments.relation_weight, RelationLoss(tuple(arguments.relation_pairs), arguments.relation_heads)),
        (arguments.student_weight, StudentLoss(path)),
        (arguments.prefix_weight, Periodic(prefix, arguments.prefix_every)),
        (arguments.mask_weight, Periodic(masks, arguments.mask_every)),
        (arguments.sync_weight, Periodic(sync, arguments.feature_every)),
        (arguments.recon_weight, Periodic(recon, arguments.feature_every)),
        (arguments.attention_weight, AttentionTransfer(attention_blocks)),
    ]
