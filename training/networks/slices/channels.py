"""Which channels stay, and what those that go are made of: greedy selection and least squares on second moments.

Notation: x are t channels of the teacher with second moments C = E[x x^T]; W are the matrices that read them, stacked,
and G = W^T W; a student keeps s of the channels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

# Of the mean second moment: what is less is not told from nothing.
_NOISE = 1e-9


def spaced(count: int, of: int) -> torch.Tensor:
    """`count` of `of` numbers, evenly spaced: j t / s, rounded down (weight selection, arXiv 2311.18823)."""
    return torch.arange(count) * of // count


def chosen(
    second: torch.Tensor,
    gram: torch.Tensor,
    count: int,
    width: int = 1,
    *,
    given: Sequence[int] = (),
    barred: Collection[int] = (),
) -> torch.Tensor:
    """The groups of channels that are best kept, one after the other.

    Each next group B is the one that lessens most what readers miss once the rest is regressed on what is kept,
    tr(W R W^T), where R = C - C_K C_KK^-1 C_K^T is what the kept channels K leave: by tr(R_BB^-1 (R G R)_BB). It is
    greedy column subset selection, with the aim of channel pruning (He et al., arXiv 1707.06168).

    Args:
        second: C (t, t), float64.
        gram: G (t, t), float64.
        count: How many groups.
        width: Channels of a group, which follow each other: 1, or those of a head.
        given: Groups that are kept already, of the `count`.
        barred: Groups that are not to be kept.

    Returns:
        The numbers of the groups, ascending.
    """
    total, groups = len(second), len(second) // width
    noise = _NOISE * second.diagonal().mean().clamp_min(torch.finfo(second.dtype).tiny)
    rest, read = second.clone(), gram @ second
    floor = noise * torch.eye(width, dtype=second.dtype)
    kept: list[int] = []
    for place in range(count):
        # 1. What each group would take away.
        own = rest.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        seen = torch.einsum("gat,tgb->gab", rest.view(groups, width, total), read.view(total, groups, width))
        gains = torch.linalg.solve(own + floor, seen).diagonal(dim1=1, dim2=2).sum(-1)
        gains[[*kept, *barred]] = -torch.inf
        best = given[place] if place < len(given) else int(gains.argmax())
        kept.append(best)
        # 2. Without it.
        block = slice(best * width, (best + 1) * width)
        share = torch.linalg.solve(rest[block, block] + floor, rest[block])
        read -= read[:, block] @ share
        rest -= rest[:, block] @ share
    return torch.tensor(sorted(kept))


def regression(second: torch.Tensor, kept: torch.Tensor, ridge: float = 1e-3) -> torch.Tensor:
    """A (t, s), by which all channels are best told from the kept ones: x is about A x_K, by least squares.

    Kept channels are told by themselves alone, exactly; a channel that is always zero is told by none.

    Args:
        second: C (t, t), float64.
        kept: The numbers of the s channels K.
        ridge: Of the mean second moment of the kept channels, what is added to each.
    """
    among = second[kept][:, kept]
    penalty = (ridge * among.diagonal().mean()).clamp_min(torch.finfo(second.dtype).tiny)
    eye = torch.eye(len(kept), dtype=second.dtype)
    found = torch.linalg.solve(among + penalty * eye, second[kept]).T.contiguous()
    found[kept] = eye
    return found
