"""A stream turned before it is cut: the directions along which most flows stay (SliceGPT, arXiv 2401.15024).

A transformer whose layers read its stream x (t channels) through norms alone, and add to it alone, computes the same with
any rotation of the stream, once the norms' gains and means stand in the matrices beside them. So the student may keep
principal directions rather than channels. With V (t, r) the r main eigenvectors of the mean over the norms of
E[n n^T], n being the centred and normalised stream, M = I - 1 1^T / t, and H (s, r) a Helmert basis of what is
orthogonal to 1, so that the student's own LayerNorm subtracts a mean that is zero, and r = s - 1,

    z = P x,  P = H V^T M        x is about A z,  A = V H^T.

What writes, W x + b, becomes P W, P b; what reads through a norm of gains g and biases b becomes W diag(g) A, and W b
joins its bias. The student's norm divides by the norm of z over sqrt(s), the teacher's by that of M x over sqrt(t): its
gains are rho sqrt(t / s), rho^2 = tr(V^T E[n n^T] V) / t the part of the energy there that is kept, and its biases zero.
An RMSNorm subtracts no mean: then M and H are the identity and r = s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pwl_hf.training.networks.slices.axes import Axes
from pwl_hf.training.networks.slices.moments import Observations, centring


@dataclass(frozen=True)
class Rotation:
    """How one stream is turned and cut.

    Args:
        down: P (s, t), float64.
        back: A (t, s), float64.
        gains: Path of a norm of the teacher's -> the gain of all channels of the student's.
        fed: Path of a matrix of the teacher's that reads the stream -> that of the norm that it reads it through.
        scaled: Path of a matrix of the teacher's that writes the stream -> that of the scale of each channel after it.
    """

    down: torch.Tensor
    back: torch.Tensor
    gains: dict[str, float]
    fed: dict[str, str]
    scaled: dict[str, str]


def rotation_of(teacher: nn.Module, axes: Axes, seen: Observations, axis: str, tied: frozenset[str]) -> Rotation | None:
    """The rotation of a stream; None where something but a norm, or what a norm feeds, reads it.

    Args:
        teacher: The network.
        axes: Its axes.
        seen: What flows in it.
        axis: The stream.
        tied: Paths of modules of the teacher's whose tensors are another's too, which cannot be turned two ways.
    """
    # 1. What has to do with the stream, in the order in which it runs, and where.
    roles: dict[str, dict[str, tuple[str | int, ...]]] = {}
    for path, dims in axes.tensors.items():
        module = axes.sources[path].rpartition(".")[0]
        for dim in dims:
            if axis in dim.layout:
                roles.setdefault(module, {})[dim.role] = dim.layout
    fed: dict[str, str] = {}
    scaled: dict[str, str] = {}
    last: dict[str, str] = {}
    before = ""
    for path in (path for path in seen.order if path in roles):
        part = next(part for part in axes.parts if path == part or path.startswith(f"{part}."))
        place, module, role = axes.parts[part].place, teacher.get_submodule(path), roles[path]
        part = part if place == "unit" else place
        is_norm = path in seen.normalised
        opens = last.get(part) is None
        if path in tied or ("reads" in role and "writes" in role):
            return None
        # 2. A unit, and what follows them, begins with a norm; a norm feeds what reads; nothing else touches it.
        if place in ("unit", "head") and opens and not is_norm:
            return None
        if is_norm:
            if place == "embedder" or role["acts"] != (axis,):
                return None
            before = path
        elif "reads" in role:
            if not before or (_bias_of(teacher, before) is not None and getattr(module, "bias", None) is None):
                return None
            fed[path] = before
        elif "acts" in role:
            if place != "unit" or last.get(part) not in roles or "writes" not in roles[last[part]]:
                return None
            scaled[last[part]] = path
        last[part] = path
    # 3. A unit that ends with a norm gives the norm's output, not a sum.
    norms = list(dict.fromkeys(fed.values()))
    if not norms or any(path in seen.normalised for part, path in last.items() if part in axes.parts):
        return None
    return _rotation([seen.normalised[norm] for norm in norms], norms, axes.sizes[axis], fed, scaled,
                     bool(centring(teacher.get_submodule(norms[0]))))


def _bias_of(teacher: nn.Module, path: str) -> torch.Tensor | None:
    found: torch.Tensor | None = getattr(teacher.get_submodule(path), "bias", None)
    return found


def _rotation(
    moments: list[torch.Tensor],
    norms: list[str],
    sizes: tuple[int, int],
    fed: dict[str, str],
    scaled: dict[str, str],
    centres: bool,
) -> Rotation:
    teacher, student = sizes
    directions = student - 1 if centres else student
    main = torch.linalg.eigh(sum(moments[1:], moments[0])).eigenvectors.flip(-1)[:, :directions]
    basis, centre = torch.eye(student, dtype=torch.float64), torch.eye(teacher, dtype=torch.float64)
    if centres:
        basis, centre = helmert(student), centre - 1 / teacher
    gains = {
        norm: math.sqrt(float((main.T @ seen @ main).trace() / seen.trace()) * teacher / student)
        for norm, seen in zip(norms, moments, strict=True)
    }
    return Rotation(basis @ main.T @ centre, main @ basis.T, gains, fed, scaled)


def helmert(size: int) -> torch.Tensor:
    """An orthonormal basis (size, size - 1) of what sums to zero, float64."""
    found = torch.zeros(size, size - 1, dtype=torch.float64)
    for k in range(1, size):
        found[:k, k - 1] = 1
        found[k, k - 1] = -k
        found[:, k - 1] /= math.sqrt(k * (k + 1))
    return found
