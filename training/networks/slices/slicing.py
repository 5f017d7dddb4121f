"""A narrower student as slices of its teacher.

Along an axis of t channels the student has s: P (s, t) leads there and A (t, s) back, so that x is about A P x. A
matrix W becomes P_out W A_in; biases, and what acts on each channel (BatchNorm with its statistics, gains, kernels of
one channel), follow P. P keeps channels as they are: whole heads of an attention, and those channels of all else from
which the rest is best told (`channels.chosen`); A is the regression of all channels on those kept (channel pruning,
arXiv 1707.06168), so that what reads them makes up for those that go. Where normalisation allows it, a stream is turned
before it is cut (`rotation`); where a norm remains over fewer channels, its gains make up for what it divides by. At a
boundary between blocks, the encoder begins as P and the decoder as A.

Axes on which both networks are equally wide are copied: P and A are the identity there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from pwl_hf.modeling import Converter, PWLPreTrainedModel
from pwl_hf.training.networks.slices.axes import Axes, Dim, Layout, axes_of
from pwl_hf.training.networks.slices.channels import chosen, regression, spaced
from pwl_hf.training.networks.slices.moments import centring, observe
from pwl_hf.training.networks.slices.rotation import Rotation, rotation_of


@dataclass(frozen=True)
class Slices:
    """How the axes of a teacher become those of a student.

    Args:
        axes: The axes.
        kept: Axis -> the numbers of the channels that stay, in the student's order.
        back: Layout without copies -> A (t, s), float64, for what reads it.
        decoders: Axis of a stream -> A (t, s), float64, for what comes back over a boundary.
        rotations: Axis of a stream -> how it is turned.
        gains: Path of a norm of the teacher's over a stream that is cut -> what the student's gains are multiplied by.
    """

    axes: Axes
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    back: dict[Layout, torch.Tensor] = field(default_factory=dict)
    decoders: dict[str, torch.Tensor] = field(default_factory=dict)
    rotations: dict[str, Rotation] = field(default_factory=dict)
    gains: dict[str, float] = field(default_factory=dict)

    def maps(self, axis: str) -> tuple[torch.Tensor, torch.Tensor]:
        """P (s, t) and A (t, s) of a stream, float64."""
        if axis in self.rotations:
            return self.rotations[axis].down, self.rotations[axis].back
        teacher, student = self.axes.sizes[axis]
        down = torch.zeros(student, teacher, dtype=torch.float64)
        down[torch.arange(student), self.kept[axis]] = 1
        return down, self.decoders.get(axis, down.T)

    def sliced(self, tensor: torch.Tensor, dims: Iterable[Dim]) -> torch.Tensor:
        """A tensor of the student's made of the teacher's, by its dimensions on axes."""
        for dim in dims:
            if (matrix := self._matrix(dim)) is None:
                tensor = tensor.index_select(dim.number, self.places(dim.layout).to(tensor.device))
            else:
                moved = tensor.movedim(dim.number, -1).double() @ matrix.to(tensor.device)
                tensor = moved.movedim(-1, dim.number).to(tensor.dtype)
        return tensor

    def _matrix(self, dim: Dim) -> torch.Tensor | None:
        """What the dimension is multiplied by from the right, (t, s); None where channels are picked."""
        layout = tuple(factor for factor in dim.layout if isinstance(factor, str))
        copies = math.prod(factor for factor in dim.layout if isinstance(factor, int))
        rotation = self.rotations.get(layout[0]) if len(layout) == 1 else None
        if dim.role == "reads":
            found = rotation.back if rotation is not None else self.back.get(layout)
        else:
            found = rotation.down.T if rotation is not None else None
        return torch.block_diag(*[found] * copies) if found is not None and copies > 1 else found

    def places(self, layout: Layout) -> torch.Tensor:
        """The places of the kept channels in a dimension of these factors."""
        places = torch.zeros(1, dtype=torch.long)
        for factor, length in zip(layout, self.axes.lengths(layout)[0], strict=True):
            kept = self.kept[factor] if isinstance(factor, str) else torch.arange(length)
            places = (places[:, None] * length + kept).reshape(-1)
        return places


@torch.no_grad()
def begin_student(model: PWLPreTrainedModel, slices: Slices) -> None:
    """Give the student the weights and statistics that its teacher has, sliced, in place."""
    teacher, done = model.teacher.state_dict(), set[int]()
    for path, tensor in model.student.state_dict().items():
        # A tensor under two names is what its first is: then what reads it makes up for nothing.
        if path in slices.axes.sources and tensor.data_ptr() not in done:
            tensor.copy_(_begun(slices, teacher, path))
            done.add(tensor.data_ptr())


def _begun(slices: Slices, teacher: Mapping[str, torch.Tensor], path: str) -> torch.Tensor:
    """A tensor of the student's: what is turned takes over gains, biases and scales of its neighbours first."""
    source, dims = slices.axes.sources[path], slices.axes.tensors[path]
    module, _, leaf = source.rpartition(".")
    value = teacher[source]
    for rotation in slices.rotations.values():
        if module in rotation.gains:
            gain = rotation.gains[module] if leaf == "weight" else 0.0
            return torch.full_like(value[: rotation.down.shape[0]], gain)
        if module in rotation.scaled.values():
            return torch.ones_like(value[: rotation.down.shape[0]])
        if module in rotation.scaled:
            scale = next(tensor for name, tensor in teacher.items() if name.startswith(f"{rotation.scaled[module]}."))
            value = value * (scale if value.ndim == 1 else scale[:, None])
        if module in rotation.fed:
            norm = rotation.fed[module]
            gains, biases = teacher[f"{norm}.weight"], teacher.get(f"{norm}.bias")
            weight = teacher[f"{module}.weight"]
            copies = weight.shape[1] // len(gains)
            if leaf == "weight":
                value = value * gains.repeat(copies)
            elif biases is not None:
                value = value + weight @ biases.repeat(copies)
    if dims and len(dims[0].layout) == 3 and dims[0].role == "writes":
        # An attention divides by the root of its heads' width.
        wide, narrow = slices.axes.lengths(dims[0].layout)
        value = value * math.sqrt(narrow[2] / wide[2])
    value = slices.sliced(value, dims)
    return value * slices.gains[module] if leaf == "weight" and module in slices.gains else value


@torch.no_grad()
def begin_converters(model: PWLPreTrainedModel, slices: Slices) -> None:
    """Let the encoders begin as P of the stream at their boundary and the decoders as A, in place."""
    for boundary, axis in slices.axes.streams.items():
        for converters, weight in zip((model.encoders, model.decoders), slices.maps(axis), strict=True):
            converter = converters[str(boundary)]
            if isinstance(converter, Converter):
                converter.weight.copy_(weight)
                converter.bias.zero_()


@torch.no_grad()
def slices_of(
    model: PWLPreTrainedModel, pairs: Mapping[str, str], batches: Iterable[Mapping[str, torch.Tensor]] = ()
) -> Slices:
    """Find what a student keeps of its teacher; nothing is changed.

    Args:
        model: With everything resident.
        pairs: Path of a module in the student -> path of the teacher's that it begins as.
        batches: Some inputs by name, without labels; not read where the student is narrower nowhere.

    Raises:
        ValueError: For what does not fit, by name; if inputs are needed and there are none.
    """
    axes = axes_of(model, pairs)
    found = Slices(axes, {name: torch.arange(student) for name, (_, student) in axes.sizes.items()})
    if not axes.narrower:
        return found
    # 1. What flows, and what reads it.
    seen, tied, grams = observe(model, axes, batches), _tied(model.student, axes), _grams(model.teacher, axes)
    _carry_back(grams, axes)
    # 2. Streams, turned where that may be.
    streams = {scope.writes for scope in axes.parts.values()}
    for name in (name for name in axes.narrower if name in streams):
        if (rotation := rotation_of(model.teacher, axes, seen, name, tied)) is not None:
            found.rotations[name] = rotation
    # 3. Channels and heads, with what makes up for those that go.
    for layout, second in seen.read.items():
        teacher, student = axes.lengths(layout)
        if layout[0] in found.rotations:
            continue
        if teacher != student:
            _choose(found, layout, second, grams[layout])
            found.back[layout] = regression(second, found.places(layout))
        elif layout[0] in axes.carried:
            _order(found, str(layout[0]))
    chosen_by = {factor for layout in seen.read for factor in layout}
    if unread := [name for name in axes.narrower if name not in chosen_by and name not in found.rotations]:
        raise ValueError(
            f"init_student_from_teacher: nothing was seen to read {unread[0]}, so that its channels cannot be chosen: "
            "give inputs that the teacher uses it for"
        )
    # 4. What norms of fewer channels divide by, and how features come back over a boundary.
    norms = {axes.sources[path].rpartition(".")[0]: dims for path, dims in axes.tensors.items()}
    turned = {path for rotation in found.rotations.values() for path in rotation.gains}
    for path, second in seen.normalised.items():
        (layout,) = {dim.layout for dim in norms[path]} or {()}
        teacher, student = axes.lengths(layout)
        if teacher != student and path not in turned:
            found.gains[path] = _gain(second, found.places(layout), model.teacher.get_submodule(path))
    for name, second in seen.streams.items():
        if name in axes.narrower and name not in found.rotations:
            found.decoders[name] = regression(second, found.kept[name])
    return found


def _gain(second: torch.Tensor, kept: torch.Tensor, norm: nn.Module) -> float:
    """By how much a norm over the kept channels alone makes them larger than the norm over all, to be undone."""
    among = second[kept][:, kept]
    mean = among.mean() if centring(norm) else 0.0
    return math.sqrt(max(0.0, float(among.diagonal().mean() - mean)))


def _choose(found: Slices, layout: Layout, second: torch.Tensor, gram: torch.Tensor) -> None:
    """Choose the channels of an axis, or of the axes of an attention: there those of whole heads."""
    for place, (axis, teacher, student) in enumerate(zip(layout, *found.axes.lengths(layout), strict=True)):
        if student == teacher:
            continue
        width = math.prod(found.axes.lengths(layout)[0][1:])
        if place:
            found.kept[str(axis)] = spaced(student, teacher)
            continue
        given, barred = _carried(found, str(axis))
        found.kept[str(axis)] = chosen(second, gram, student, width, given=given, barred=barred)
        _order(found, str(axis))


def _carried(found: Slices, axis: str) -> tuple[list[int], list[int]]:
    """The channels of a stream that stay as others do that are carried over into it, and those that must not."""
    if axis not in found.axes.carried:
        return [], []
    source, start, _ = found.axes.carried[axis]
    given = (start + found.kept[source]).tolist()
    going = set(range(start, start + found.axes.sizes[source][0])) - set(given)
    teacher, student = found.axes.sizes[axis]
    # Elsewhere in the student nothing would be carried over into them; but there may be no others.
    return given, sorted(going) if teacher - len(going) >= student else []


def _order(found: Slices, axis: str) -> None:
    """Let the channels that are carried over into a stream stand where the student's shortcut puts them."""
    if axis not in found.axes.carried:
        return
    given, start = _carried(found, axis)[0], found.axes.carried[axis].student
    others = [channel for channel in found.kept[axis].tolist() if channel not in given]
    found.kept[axis] = torch.tensor([*others[:start], *given, *others[start:]])


def _carry_back(grams: dict[Layout, torch.Tensor], axes: Axes) -> None:
    """What reads a stream reads what is carried over into it, too: from the last level to the first."""
    for axis, (source, start, _) in reversed(axes.carried.items()):
        if (axis,) in grams and (source,) in grams:
            width = axes.sizes[source][0]
            grams[source,] = grams[source,] + grams[axis,][start : start + width, start : start + width]


def _grams(teacher: nn.Module, axes: Axes) -> dict[Layout, torch.Tensor]:
    """Layout without copies -> the sum of W^T W over the matrices that read it, float64."""
    found: dict[Layout, torch.Tensor] = {}
    for path, dims in axes.tensors.items():
        for dim in dims:
            if dim.role == "reads":
                weight = teacher.get_parameter(axes.sources[path]).detach().cpu().double()
                layout = tuple(factor for factor in dim.layout if isinstance(factor, str))
                rows = weight.movedim(dim.number, -1).reshape(-1, math.prod(axes.lengths(layout)[0]))
                found[layout] = found.get(layout, 0) + rows.T @ rows
    return found


def _tied(student: nn.Module, axes: Axes) -> frozenset[str]:
    """Paths of the teacher's modules whose tensors stand in for another's in the student."""
    by_place: dict[int, list[str]] = {}
    for path, tensor in student.state_dict().items():
        by_place.setdefault(tensor.data_ptr(), []).append(path)
    shared = [path for paths in by_place.values() if len(paths) > 1 for path in paths]
    return frozenset(axes.sources[path].rpartition(".")[0] for path in shared if path in axes.sources)
