"""What flows along a teacher's axes on a few inputs: second moments, and the order in which its modules run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.training.networks.slices.axes import Axes, Layout

# Of one batch at one module: more rows tell moments hardly better.
_ROWS = 4096


@dataclass
class Observations:
    """What was seen of a teacher.

    Args:
        read: Layout without copies -> the mean second moments (c, c), float64, of what modules read of it.
        streams: Axis -> those of the features that come into the units of its level.
        normalised: Path of a norm -> those of its input, centred if it centres, at a mean square of 1.
        order: The paths of modules with tensors, in the order in which they first ran.
    """

    read: dict[Layout, torch.Tensor] = field(default_factory=dict)
    streams: dict[str, torch.Tensor] = field(default_factory=dict)
    normalised: dict[str, torch.Tensor] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)


class _Sums:
    """Sums of outer products of rows, by key, and their number."""

    def __init__(self) -> None:
        self.sums: dict[Any, torch.Tensor] = {}
        self.counts: dict[Any, int] = {}

    def add(self, key: Any, rows: torch.Tensor) -> None:
        if len(rows) > _ROWS:
            # Evenly spaced ones would be of the same columns of every map.
            drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:_ROWS]
            rows = rows[drawn.to(rows.device)]
        rows = rows.detach().double()
        self.sums[key] = self.sums.get(key, 0) + (rows.T @ rows).cpu()
        self.counts[key] = self.counts.get(key, 0) + len(rows)

    def means(self) -> dict[Any, torch.Tensor]:
        return {key: total / self.counts[key] for key, total in self.sums.items()}


@torch.no_grad()
def observe(model: PWLPreTrainedModel, axes: Axes, batches: Iterable[Mapping[str, torch.Tensor]]) -> Observations:
    """Run the teacher on inputs, in eval mode, and note what flows through the modules that something begins as.

    Args:
        model: With the teacher resident.
        axes: What to look at.
        batches: Inputs by name; labels are left out.

    Raises:
        ValueError: If there is no batch, or something that flows is NaN or infinite.
    """
    noting, teacher = _Noting(model.config.teacher_config), model.teacher
    was_training = teacher.training
    teacher.eval()
    try:
        noting.attach(teacher, axes)
        for batch in batches:
            inputs = {name: values.to(teacher.device) for name, values in batch.items() if name != "labels"}
            noting.inputs = inputs
            teacher(**inputs)
    finally:
        noting.detach()
        teacher.train(was_training)
    if not noting.order:
        raise ValueError("init_student_from_teacher: a narrower student needs some inputs to choose its channels by")
    found = Observations(noting.read.means(), noting.streams.means(), noting.normalised.means(), noting.order)
    for key, moments in (found.read | found.streams | found.normalised).items():
        if not moments.isfinite().all():
            raise ValueError(
                f"init_student_from_teacher: what the teacher has at {key} is NaN or infinite: look for weights that "
                "are"
            )
    return found


class _Noting:
    """Hooks on a teacher's modules, and what they note.

    Args:
        config: The teacher's.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.config, self.family = config, family_of(config)
        self.read, self.streams, self.normalised = _Sums(), _Sums(), _Sums()
        self.order: list[str] = []
        # Of the batch: they tell what is padding, which flows along, and tells nothing of the data.
        self.inputs: Mapping[str, torch.Tensor] = {}
        self._handles: list[Any] = []

    def attach(self, teacher: nn.Module, axes: Axes) -> None:
        layouts: dict[str, Layout] = {}
        for path, source in axes.sources.items():
            module, _, _ = source.rpartition(".")
            layouts.setdefault(module, ())
            for dim in axes.tensors[path]:
                if dim.role == "reads":
                    layouts[module] = dim.layout
        for path, layout in layouts.items():
            self._hook(teacher, path, partial(self._note, path, layout))
        for path, scope in axes.parts.items():
            if scope.place == "unit" and scope.reads is not None:
                self._hook(teacher, path, partial(self._note_stream, scope.reads))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, teacher: nn.Module, path: str, hook: Callable[..., None]) -> None:
        # Features may come by name.
        self._handles.append(teacher.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True))

    def _note(
        self, path: str, layout: Layout, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        if path not in self.order:
            self.order.append(path)
        features = _features(inputs, named)
        if features is None:
            return
        key = tuple(factor for factor in layout if isinstance(factor, str))
        copies = math.prod(factor for factor in layout if isinstance(factor, int))
        if key:
            rows = _rows(self._kept(features), channels_first=isinstance(module, nn.Conv2d))
            self.read.add(key, rows.reshape(len(rows) * copies, -1))
        elif (centres := centring(module)) is not None:
            channels_first = getattr(module, "data_format", "") == "channels_first"
            rows = _rows(self._kept(features), channels_first=channels_first).double()
            rows = rows - rows.mean(-1, keepdim=True) if centres else rows
            scale = rows.square().mean(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny).rsqrt()
            self.normalised.add(path, rows * scale)

    def _note_stream(self, axis: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if (features := _features(inputs, named)) is not None:
            self.streams.add(axis, _rows(self._kept(features), channels_first=features.ndim == 4))

    def _kept(self, features: torch.Tensor) -> torch.Tensor:
        kept = self.family.not_padding(self.config, features, self.inputs) if features.ndim == 3 else None
        return features if kept is None or kept.shape != features.shape[:2] else features[kept]


def _features(inputs: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor | None:
    given = (*inputs, *named.values())
    return next((value for value in given if isinstance(value, torch.Tensor) and value.is_floating_point()), None)


def _rows(features: torch.Tensor, *, channels_first: bool) -> torch.Tensor:
    features = features.movedim(1, -1) if channels_first else features
    return features.reshape(-1, features.shape[-1])


def centring(module: nn.Module) -> bool | None:
    """Whether a norm over channels subtracts their mean; None for what is no such norm."""
    if isinstance(module, nn.LayerNorm):
        return True
    return False if type(module).__name__.endswith("RMSNorm") else None
