"""A stream turned before it is cut: the directions along which most flows stay (SliceGPT, arXiv 2401.15024).

A transformer whose layers read its stream x (t channels) through norms alone, and add to it alone, computes the same
with any rotation of the stream, once the norms' gains and means stand in the matrices beside them. So the student may
keep principal directions rather than channels. With n the stream as a norm's gains find it, V (t, r) the r main
eigenvectors of the mean of E[n n^T] over the norms, M = I - 1 1^T / t, and H (s, r) a Helmert basis of what is
orthogonal to 1, so that the student's own LayerNorm subtracts a mean that is zero, and r = s - 1,

    z = P x,  P = H V^T M        x is about A z,  A = V H^T.

What writes, W x + b, becomes P W, P b; what reads through a norm of gains g and biases b becomes W diag(g) A, and W b
joins its bias. The student's norm divides by |z| / sqrt(s), the teacher's by |M x| / sqrt(t): its gains are
rho sqrt(t / s), where rho^2 = tr(V^T E[n n^T] V) / t is the part of the energy there that is kept, and its biases zero.
An RMSNorm subtracts no mean: then M and H are the identity and r = s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from pwl_hf.training.networks.slices.axes import Axes, Layout
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
    # 1. What has to do with the stream, and how.
    roles: dict[str, dict[str, Layout]] = {}
    for path, dims in axes.tensors.items():
        for dim in dims:
            if axis in dim.layout:
                roles.setdefault(axes.sources[path].rpartition(".")[0], {})[dim.role] = dim.layout
    # 2. In the order in which it runs: a norm feeds what reads, a scale acts on what was written; no more is there.
    fed: dict[str, str] = {}
    scaled: dict[str, str] = {}
    ran: dict[str, list[str]] = {}
    norm = ""
    for path in (path for path in seen.order if path in roles):
        part, place = _part_of(axes, path)
        before, role = ran.setdefault(part, []), roles[path]
        if path in tied or len(role) > 1:
            return None
        if path in seen.normalised:
            if place == "embedder" or role["acts"] != (axis,):
                return None
            norm = path
        elif "reads" in role:
            if not norm or not isinstance(teacher.get_submodule(path), nn.Linear):
                return None
            if _has_bias(teacher, norm) and not _has_bias(teacher, path):
                return None
            fed[path] = norm
        elif "acts" in role:
            if place != "unit" or not before or "writes" not in roles[before[-1]]:
                return None
            scaled[before[-1]] = path
        before.append(path)
    # 3. A unit, and what follows them, begins with a norm; one that ends with a norm gives its output, not a sum.
    for part, paths in ran.items():
        begins, ends = paths[0] in seen.normalised, paths[-1] in seen.normalised
        if part != "embedder" and (not begins or ends):
            return None
    norms = {path: seen.normalised[path] for path in dict.fromkeys(fed.values())}
    if not norms:
        return None
    centres = bool(centring(teacher.get_submodule(next(iter(norms)))))
    return Rotation(*_maps(norms, axes.sizes[axis], centres), fed, scaled)


def _part_of(axes: Axes, path: str) -> tuple[str, str]:
    """The unit that a module of the teacher's stands in, or all that is before or after them, and the place."""
    part = next(part for part in axes.parts if path == part or path.startswith(f"{part}."))
    place = axes.parts[part].place
    return part if place == "unit" else place, place


def _has_bias(teacher: nn.Module, path: str) -> bool:
    return getattr(teacher.get_submodule(path), "bias", None) is not None


def _maps(
    norms: dict[str, torch.Tensor], sizes: tuple[int, int], centres: bool
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """P, A, and the gains of the student's norms."""
    teacher, student = sizes
    directions = student - 1 if centres else student
    main = torch.linalg.eigh(torch.stack(list(norms.values())).mean(0)).eigenvectors.flip(-1)[:, :directions]
    basis, centre = torch.eye(student, dtype=torch.float64), torch.eye(teacher, dtype=torch.float64)
    if centres:
        basis, centre = helmert(student), centre - 1 / teacher
    gains = {
        path: math.sqrt(float((main.T @ seen @ main).trace() / seen.trace()) * teacher / student)
        for path, seen in norms.items()
    }
    return basis @ main.T @ centre, main @ basis.T, gains


def helmert(size: int) -> torch.Tensor:
    """An orthonormal basis (size, size - 1) of what sums to zero, float64."""
    found = torch.zeros(size, size - 1, dtype=torch.float64)
    for k in range(1, size):
        found[:k, k - 1] = 1
        found[k, k - 1] = -k
        found[:, k - 1] /= math.sqrt(k * (k + 1))
    return found
