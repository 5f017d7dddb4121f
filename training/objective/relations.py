"""MiniLM: the last layer of the student relates tokens to one another as the teacher's does.

Sources: Wang et al., "MiniLM" (arXiv 2002.10957), with each network's own heads; "MiniLMv2" (arXiv 2012.15828), with
queries, keys and values split into a number of relation heads that networks of any width and heads have in common.

Notation: B images of L tokens, width C; R heads, each of C / R channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.training.objective.objective_arguments import RELATIONS
from pwl_hf.training.objective.passes import Passes

# The norm before attention, by `model_type`: where attention goes over all tokens.
_NORMS = {"vit": "layernorm_before", "deit": "layernorm_before", "dinov2": "norm1"}


def relation(left: torch.Tensor, right: torch.Tensor, heads: int) -> torch.Tensor:
    """Log-softmax(A B^T / sqrt(C / R)) of each head: the attention distribution, if A are queries and B keys.

    Args:
        left: A, (B, L, C), floating.
        right: B, (B, L, C).
        heads: R, a divisor of C.

    Returns:
        (B, R, L, L), in float32 at least; each row's exponentials add up to 1.
    """
    channels = left.shape[-1] // heads
    left, right = (x.unflatten(-1, (heads, channels)).transpose(1, 2) for x in (left, right))
    scores = left @ right.transpose(2, 3) / math.sqrt(channels)
    return functional.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def relation_loss(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL(wanted || found), the mean over images, heads and tokens.

    Args:
        found: Of the student, (B, R, L, L), logarithms.
        wanted: Of the teacher, the same shape; no gradient flows into it.
    """
    return functional.kl_div(found.flatten(0, 2), wanted.detach().flatten(0, 2), reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class RelationLoss:
    """The sum of `relation_loss` over pairs of the last layers' queries, keys and values.

    It records what enters the last layers while the two networks run, so it must be the first term that asks for
    their passes.

    Args:
        pairs: Each of two of Q, K, V: QK and VV are MiniLM's attention and value relations, QQ, KK and VV MiniLMv2's.
        heads: Relation heads; by default each network's own attention heads, which must then be as many.
    """

    pairs: tuple[str, ...] = ("QK", "VV")
    heads: int | None = None
    name: ClassVar[str] = "relation"

    def check(self, model: PWLPreTrainedModel) -> None:
        """Raise what the first step would.

        Raises:
            ValueError: For a pair that does not exist, a family without global attention, or heads that the two
                networks cannot have in common.
        """
        for pair in self.pairs:
            if pair not in RELATIONS:
                raise ValueError(f"relation_pairs must be of {', '.join(RELATIONS)}, got {pair!r}")
        attentions: list[Any] = [last_layer(network).attention for network in (model.teacher, model.student)]
        widths = [attention.q_proj.out_features for attention in attentions]
        if self.heads is None:
            heads = [attention.num_attention_heads for attention in attentions]
            if heads[0] != heads[1]:
                common = math.gcd(*widths)
                raise ValueError(
                    f"the teacher has {heads[0]} attention heads and the student {heads[1]}: give relation_heads, a "
                    f"divisor of {common}, to split both alike"
                )
            return
        for role, width in zip(("teacher", "student"), widths, strict=True):
            if self.heads < 1 or width % self.heads:
                raise ValueError(f"relation_heads must divide the {role}'s width {width}, got {self.heads}")

    def __call__(self, passes: Passes) -> torch.Tensor:
        """The term.

        Raises:
            RuntimeError: If a term before this one ran the networks.
        """
        model = passes.model
        with _entering(last_layer(model.teacher)) as entered:
            _ = passes.teacher
        with torch.no_grad():
            wanted = self._relations(last_layer(model.teacher), _only(entered))
        with _entering(last_layer(model.student)) as entered:
            _ = passes.student
        found = self._relations(last_layer(model.student), _only(entered))
        return torch.stack([relation_loss(*both) for both in zip(found, wanted, strict=True)]).sum()

    def _relations(self, layer: nn.Module, entered: torch.Tensor) -> list[torch.Tensor]:
        attention: Any = layer.attention
        heads = self.heads or attention.num_attention_heads
        normed = layer.get_submodule(_NORMS[attention.config.model_type])(entered)
        of = {letter: getattr(attention, f"{letter.lower()}_proj")(normed) for letter in set("".join(self.pairs))}
        return [relation(of[pair[0]], of[pair[1]], heads) for pair in self.pairs]


def last_layer(network: PreTrainedModel) -> nn.Module:
    """The last layer of a transformer whose attention goes over all tokens.

    Raises:
        ValueError: For a network of another family.
    """
    config = network.config
    if config.model_type not in _NORMS:
        attention = "attends within windows" if config.model_type == "swin" else "has no attention"
        raise ValueError(
            f"relation_weight needs attention over all tokens, as {', '.join(_NORMS)} have it; model_type "
            f"{config.model_type!r} {attention}: set relation_weight to 0"
        )
    family = family_of(config)
    (path,) = family.unit_paths(config, family.num_units(config) - 1)
    return network.get_submodule(path)


@contextmanager
def _entering(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect what enters a layer meanwhile; afterwards the layer is as it was.

    What enters is outside the region that activation checkpointing runs again, whatever its variant.
    """
    entered: list[torch.Tensor] = []

    def record(_module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        entered.append(inputs[0])

    # A compiled layer does not see hooks that come after its compilation.
    compiled, layer._compiled_call_impl = layer._compiled_call_impl, None
    handle = layer.register_forward_pre_hook(record)
    try:
        yield entered
    finally:
        handle.remove()
        layer._compiled_call_impl = compiled


def _only(entered: list[torch.Tensor]) -> torch.Tensor:
    if len(entered) != 1:
        raise RuntimeError(
            f"the last layer ran {len(entered)} times where once was expected: RelationLoss records the networks' own "
            "passes, so put it before all terms that ask for them"
        )
    return entered[0]
