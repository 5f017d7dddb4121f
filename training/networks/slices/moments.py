"""What flows along a teacher's axes on a few images: second moments, and the order in which its modules run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.training.networks.slices.axes import Axes, Layout


@dataclass
class Moments:
    """Sums over n vectors of c channels, in float64.

    Args:
        channels: c.
    """

    channels: int
    count: int = 0
    second: torch.Tensor = field(init=False)
    first: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.second = torch.zeros(self.channels, self.channels, dtype=torch.float64)
        self.first = torch.zeros(self.channels, dtype=torch.float64)

    def add(self, rows: torch.Tensor) -> None:
        """Take in rows (n, c)."""
        rows = rows.detach().to("cpu", torch.float64)
        self.count += len(rows)
        self.first += rows.sum(0)
        self.second += rows.T @ rows


@dataclass
class Observations:
    """What was seen of a teacher.

    Args:
        read: Layout -> what the modules read that read it.
        streams: Axis of a stream -> the features before and after units.
        normalised: Path of a norm on a stream -> the normalised features that come into it, before gains.
        order: The paths of modules with tensors in the order in which they ran.
    """

    read: dict[Layout, Moments] = field(default_factory=dict)
    streams: dict[str, Moments] = field(default_factory=dict)
    normalised: dict[str, Moments] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


@torch.no_grad()
def observe(model: PWLPreTrainedModel, axes: Axes, batches: Iterable[dict[str, torch.Tensor]]) -> Observations:
    """Run the teacher on inputs, in eval mode, and note what flows.

    Args:
        model: With the teacher resident.
        axes: What to look at.
        batches: Inputs by name, without labels.
    """
    found, teacher = Observations(), model.teacher
    was_training = teacher.training
    teacher.eval()
    with _hooks(teacher, axes, found):
        for batch in batches:
            teacher(**{name: values.to(teacher.device) for name, values in batch.items() if name != "labels"})
    teacher.train(was_training)
    return found


def rows_of(values: torch.Tensor, channels_at: int) -> torch.Tensor:
    """(..., C, ...) -> (n, C)."""
    values = values.movedim(channels_at, -1)
    return values.reshape(-1, values.shape[-1])


@contextmanager
def _hooks(teacher: nn.Module, axes: Axes, found: Observations) -> Iterator[None]:
    handles = []
    seen = set()
    for path, source in axes.sources.items():
        module_path, _, leaf = source.rpartition(".")
        dims = axes.tensors[path]
        if not leaf or module_path in seen:
            continue
        module = teacher.get_submodule(module_path)
        seen.add(module_path)
        handles.append(module.register_forward_pre_hook(_noting_order(found, module_path)))
        channels_at = 1 if isinstance(module, nn.Conv2d) else -1
        for dim in dims:
            if dim.role == "reads":
                layout = tuple(factor for factor in dim.layout if isinstance(factor, str))
                copies = [factor for factor in dim.layout if isinstance(factor, int)]
                handles.append(
                    module.register_forward_pre_hook(_noting_rows(found.read, layout, channels_at, sum(copies) or 1))
                )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noting_order(found: Observations, path: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if path not in found.order:
            found.order.append(path)
        if isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__:
            rows = rows_of(inputs[0], -1).double()
            if isinstance(module, nn.LayerNorm):
                rows = rows - rows.mean(-1, keepdim=True)
            rows = rows * (rows.square().mean(-1, keepdim=True) + 1e-30).rsqrt()
            found.normalised.setdefault(path, Moments(rows.shape[-1])).add(rows)

    return hook


def _noting_rows(into: dict[Layout, Moments], layout: Layout, channels_at: int, copies: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = rows_of(inputs[0], channels_at)
        rows = rows.reshape(len(rows) * copies, -1)
        into.setdefault(layout, Moments(rows.shape[-1])).add(rows)

    return hook
