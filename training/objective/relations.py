"""MiniLM: the last layer of the student relates tokens to one another as the teacher's does.

Sources: Wang et al., "MiniLM" (arXiv 2002.10957), with each network's own heads; "MiniLMv2" (arXiv 2012.15828), with
queries, keys and values split into a number of relation heads that networks of any width and heads have in common.

Notation: B samples of L tokens, width C; R heads, each of C / R channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.training.objective.objective_arguments import RELATIONS
from pwl_hf.training.objective.passes import Passes


@dataclass(frozen=True)
class _Projections:
    """Where the last layer makes queries, keys and values of what enters it.

    Args:
        names: Paths of the three within a layer.
        norm: Path of the norm before them; None where they take what enters.
    """

    names: tuple[str, str, str]
    norm: str | None = None


def _within(parent: str, *names: str, norm: str | None = None) -> _Projections:
    query, key, value = (f"{parent}.{name}" for name in names)
    return _Projections((query, key, value), norm)


_BERT = _within("attention.self", "query", "key", "value")
_SPLIT = ("q_proj", "k_proj", "v_proj")
# By `model_type`: where attention goes over all tokens, and has queries, keys and values for itself.
_PROJECTIONS = {
    "vit": _within("attention", *_SPLIT, norm="layernorm_before"),
    "deit": _within("attention", *_SPLIT, norm="layernorm_before"),
    "dinov2": _within("attention", *_SPLIT, norm="norm1"),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "ernie", "electra"), _BERT),
    "roberta-prelayernorm": _within("attention.self", "query", "key", "value", norm="attention.LayerNorm"),
    "distilbert": _within("attention", "q_lin", "k_lin", "v_lin"),
    "mpnet": _within("attention.attn", "q", "k", "v"),
}


def relation(left: torch.Tensor, right: torch.Tensor, heads: int, kept: torch.Tensor | None = None) -> torch.Tensor:
    """Log-softmax(A B^T / sqrt(C / R)) of each head: the attention distribution, if A are queries and B keys.

    Args:
        left: A, (B, L, C), floating.
        right: B, (B, L, C).
        heads: R, a divisor of C.
        kept: (B, L), bool: the tokens that are no padding, to which alone there is a relation; None for all.

    Returns:
        (B, R, L, L), in float32 at least; each row's exponentials add up to 1.
    """
    channels = left.shape[-1] // heads
    left, right = (x.unflatten(-1, (heads, channels)).transpose(1, 2) for x in (left, right))
    scores = left @ right.transpose(2, 3) / math.sqrt(channels)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if kept is not None:
        # Not -inf: the divergence of nothing from nothing is 0.
        scores = scores.masked_fill(~kept[:, None, None, :], torch.finfo(scores.dtype).min)
    return functional.log_softmax(scores, dim=-1)


def relation_loss(found: torch.Tensor, wanted: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """KL(wanted || found), the mean over heads, tokens and samples.

    Args:
        found: Of the student, (B, R, L, L), logarithms.
        wanted: Of the teacher, the same shape; no gradient flows into it.
        kept: (B, L), bool: the tokens that are no padding, over which alone the mean is; None for all.
    """
    apart = functional.kl_div(found, wanted.detach(), reduction="none", log_target=True).sum(-1).mean(1)
    if kept is None:
        return apart.mean()
    # A mean of each sample's: in parts of a batch it is the same.
    return ((apart * kept).sum(1) / kept.sum(1).clamp_min(1)).mean()


@dataclass(frozen=True)
class RelationLoss:
    """The sum of `relation_loss` over pairs of the last layers' queries, keys and values.

    It records what enters the last layers while the two networks run, so it must be the first term that asks for
    their passes. Positions that some types add within attention are left out.

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
            ValueError: For a pair that does not exist, a family without such attention, or heads that the two
                networks cannot have in common.
        """
        for pair in self.pairs:
            if pair not in RELATIONS:
                raise ValueError(f"relation_pairs must be of {', '.join(RELATIONS)}, got {pair!r}")
        networks = (model.teacher, model.student)
        widths = [_width(network) for network in networks]
        if self.heads is None:
            heads = [_heads(network) for network in networks]
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
            wanted = self._relations(model.teacher, _only(entered), passes.kept)
        with _entering(last_layer(model.student)) as entered:
            _ = passes.student
        found = self._relations(model.student, _only(entered), passes.kept)
        return torch.stack([relation_loss(*both, passes.kept) for both in zip(found, wanted, strict=True)]).sum()

    def _relations(
        self, network: PreTrainedModel, entered: torch.Tensor, kept: torch.Tensor | None
    ) -> list[torch.Tensor]:
        layer, places = last_layer(network), _PROJECTIONS[network.config.model_type]
        heads = self.heads or _heads(network)
        normed = entered if places.norm is None else layer.get_submodule(places.norm)(entered)
        wanted = set("".join(self.pairs))
        of = {
            letter: layer.get_submodule(name)(normed)
            for letter, name in zip("QKV", places.names, strict=True)
            if letter in wanted
        }
        return [relation(of[pair[0]], of[pair[1]], heads, kept) for pair in self.pairs]


def last_layer(network: PreTrainedModel) -> nn.Module:
    """The last layer of a transformer whose attention goes over all tokens.

    Raises:
        ValueError: For a network of another family.
    """
    config = network.config
    if config.model_type not in _PROJECTIONS:
        raise ValueError(
            f"relation_weight needs attention over all tokens with projections of queries, keys and values, as "
            f"{', '.join(_PROJECTIONS)} have it, and not model_type {config.model_type!r}: set relation_weight to 0"
        )
    family = family_of(config)
    path = family.unit_paths(config, family.num_units(config) - 1)[0]
    return network.get_submodule(path)


def _heads(network: PreTrainedModel) -> int:
    return int(network.config.num_attention_heads)  # type: ignore[attr-defined]


def _width(network: PreTrainedModel) -> int:
    """How many channels the queries of the last layer have."""
    layer = last_layer(network)
    query = layer.get_submodule(_PROJECTIONS[network.config.model_type].names[0])
    return int(query.out_features)  # type: ignore[arg-type]


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
