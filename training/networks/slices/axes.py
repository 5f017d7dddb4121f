"""On which axis each dimension of a network's tensors lies, by the names and shapes of its modules.

An axis is a set of channels that several tensors share: the stream of a resolution level (what flows between units),
the inside of a feed-forward part or bottleneck, the heads of an attention. A dimension of a tensor is a product of
factors, each an axis or a number of copies: a query projection writes (groups, heads of a group, width of a head),
Swin's patch merging reads (4, stream). A narrower network keeps the same factors, of smaller axes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple

from torch import nn
from transformers import PreTrainedConfig

from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.families.base import Family
from pwl_hf.modeling.families.registry import family_of

# The names that transformers gives to the projections within a unit.
_QUERY = re.compile(r"(^|\.)(q_proj|query|q|q_lin)$")
_KEY_OR_VALUE = re.compile(r"(^|\.)([kv]_proj|key|value|[kv]|[kv]_lin)$")
_ATTENTION_OUT = re.compile(r"(^|\.)(o_proj|out_proj|o|out_lin)$|(^|\.)attention\.output\.dense$")
_UP = re.compile(r"(^|\.)(fc1|pwconv1|gate_proj|up_proj|weights_in|lin1)$|(^|\.)intermediate[._]dense$")
_DOWN = re.compile(r"(^|\.)(fc2|pwconv2|down_proj|weights_out|lin2)$|(^|\.)output[._]dense$")
# The convolutions of a residual branch, one after the other.
_CHAIN = re.compile(r"^(?P<branch>(?:.*\.)?layer)\.(?P<place>\d+)\.convolution$")

# An axis by its name, or a number of copies.
Factor = str | int
Layout = tuple[Factor, ...]
Place = Literal["embedder", "unit", "head", "shared"]


class Dim(NamedTuple):
    """A dimension of a tensor that lies on axes.

    Args:
        number: Which one.
        layout: Its factors, the slowest first.
        role: `writes` (rows of a matrix, biases), `reads` (its columns) or `acts` (a gain, a statistic, a kernel of
            each channel).
    """

    number: int
    layout: Layout
    role: Literal["writes", "reads", "acts"]


class Scope(NamedTuple):
    """Where a module stands, and the axes of the features that come in and go out, if it has such."""

    place: Place
    reads: str | None
    writes: str | None


class Carried(NamedTuple):
    """A stream whose channels a shortcut without parameters carries over into another, one after the other.

    Args:
        source: The axis that they come from.
        teacher: Where the first of them stands in the teacher's stream.
        student: The same in the student's.
    """

    source: str
    teacher: int
    student: int


@dataclass(frozen=True)
class Axes:
    """The axes of a pair of networks, and the dimensions of the student's tensors that lie on them.

    Args:
        sizes: Axis -> channels of the teacher and of the student.
        tensors: Path of a tensor in the student -> its dimensions on axes; none for what has no channels.
        sources: Path of a tensor in the student -> path of the teacher's that it is made of.
        streams: Boundary between blocks (from 1) -> the axis of the features there.
        carried: Axis of a stream -> what is carried over into it.
        parts: Path of a module of the teacher that something begins as -> where it stands, and between which streams.
    """

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    tensors: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    streams: dict[int, str] = field(default_factory=dict)
    carried: dict[str, Carried] = field(default_factory=dict)
    parts: dict[str, Scope] = field(default_factory=dict)

    def lengths(self, layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The lengths of a layout's factors in the teacher, and in the student."""
        pairs = [self.sizes[factor] if isinstance(factor, str) else (factor, factor) for factor in layout]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)

    @property
    def narrower(self) -> tuple[str, ...]:
        """The axes along which the student is narrower."""
        return tuple(name for name, (teacher, student) in self.sizes.items() if student < teacher)


def axes_of(model: PWLPreTrainedModel, pairs: Mapping[str, str]) -> Axes:
    """The axes of a teacher and a student of one family.

    Args:
        model: With everything resident.
        pairs: Path of a module in the student -> path of the teacher's that it is made of; see `inheritance`.

    Raises:
        ValueError: For a tensor whose dimensions are no multiples of the axes that its name says, and for an axis
            along which the student is wider than the teacher, by name; for a student of other widths in a family whose
            names tell no channels.
    """
    family = family_of(model.config.teacher_config)
    if not family.tells_channels:
        return _of_equal_widths(model, pairs)
    found = Axes()
    scopes = _scopes(model, found)
    # One table of biases for all layers: they keep the same heads.
    shared = "all layers" if family.shared_paths(model.config.student_config) else None
    for own, other in pairs.items():
        _Part(found, own, other, (model.student, model.teacher), scopes[own], shared).read()
    for axis, (teacher, student) in found.sizes.items():
        if student > teacher:
            raise ValueError(
                f"init_student_from_teacher: {axis} has {student} channels in the student and {teacher} in the "
                "teacher: what is wider has nothing to begin as; give a narrower student, or leave the option out"
            )
    return found


def _of_equal_widths(model: PWLPreTrainedModel, pairs: Mapping[str, str]) -> Axes:
    """Axes of nothing but the boundaries, of networks that are equally wide everywhere."""
    found, config = Axes(), model.config
    for own, other in pairs.items():
        mine, theirs = (
            network.get_submodule(path).state_dict() for network, path in ((model.student, own), (model.teacher, other))
        )
        _check_same_names(own, mine, theirs)
        for name in mine:
            shapes = list(mine[name].shape), list(theirs[name].shape)
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"init_student_from_teacher: {own}.{name} is {shapes[0]} and the teacher's {shapes[1]}, and the "
                    f"names of {config.teacher_config.model_type!r} do not tell which channels to keep: give a student "
                    "as wide as its teacher, or leave the option out"
                )
            found.sources[f"{own}.{name}"], found.tensors[f"{own}.{name}"] = f"{other}.{name}", ()
    for block, cut in enumerate(config.student_cuts[:-1], 1):
        width = family_of(config.student_config).boundary(config.student_config, cut).width
        found.streams[block] = f"stream {block}"
        found.sizes[f"stream {block}"] = width, width
    return found


def _scopes(model: PWLPreTrainedModel, found: Axes) -> dict[str, Scope]:
    """The streams: the axis after each unit; modules between resolutions lead from one to the next."""
    config = model.config
    family, own, other = family_of(config.teacher_config), config.student_config, config.teacher_config
    # 1. Widths where levels begin and end; an axis ends where either network's width changes.
    depths = len(family.depths(own))
    mine = _level_widths(family, own, model.student)
    theirs = _level_widths(family, other, model.teacher)
    axes = ["stream 0"]
    for level in range(1, depths + 1):
        same = (mine[level], theirs[level]) == (mine[level - 1], theirs[level - 1])
        axes.append(axes[-1] if same else f"stream {level}")
    found.sizes.update({axis: (theirs[i], mine[i]) for i, axis in enumerate(axes)})
    for level in range(1, depths):
        places = family.carried(other, level), family.carried(own, level)
        if axes[level + 1] != axes[level] and places[0] is not None and places[1] is not None:
            found.carried[axes[level + 1]] = Carried(axes[level], places[0], places[1])

    # 2. Within a level features are as at its end, or, if units end with what leads on, as at its beginning.
    def after(unit: int) -> str:
        level, _ = family.level(own, unit)
        width = family.boundary(own, unit + 1).width
        return axes[level + 1] if width == mine[level + 1] else axes[level]

    # 3. The modules of each unit: what stands before or after the numbered one leads between resolutions.
    scopes = {path: Scope("embedder", None, axes[0]) for path in family.embedder_paths(own)}
    before = axes[0]
    for unit in range(family.num_units(own)):
        paths, end = family.unit_paths(own, unit), after(unit)
        place = paths.index(family.layer_path(own, unit))
        for i, path in enumerate(paths):
            scopes[path] = Scope("unit", before, end)
            if i == place and len(paths) > 1:
                scopes[path] = Scope("unit", before, before) if place == 0 else Scope("unit", end, end)
        before = end
    found.streams.update({block: after(cut - 1) for block, cut in enumerate(config.student_cuts[:-1], 1)})
    scopes |= {path: Scope("head", axes[-1], axes[-1]) for path in family.head_paths(own)}
    return scopes | {path: Scope("shared", None, None) for path in family.shared_paths(own)}


def _level_widths(family: Family, config: PreTrainedConfig, network: nn.Module) -> list[int]:
    """The width of what the first unit reads, and of what each level ends with."""
    first = [network.get_submodule(path) for path in family.unit_paths(config, 0) if has_module(network, path)]
    matrices = (module for unit in first for module in unit.modules() if isinstance(module, _MATRICES))
    ends = [family.boundary(config, end).width for end in accumulate(family.depths(config))]
    # GPT-2 has matrices of its own kind.
    first_matrix = next(matrices, None)
    return [ends[0] if first_matrix is None else _lengths_of(first_matrix)[1], *ends]


def has_module(network: nn.Module, path: str) -> bool:
    """Whether a network has a module at a path."""
    try:
        network.get_submodule(path)
    except AttributeError:
        return False
    return True


class _Part:
    """One module of a student and the teacher's that it is made of.

    Args:
        found: What is added to.
        own: Path in the student.
        other: Path in the teacher.
        networks: The student and the teacher.
        scope: The axes before and after it.
        heads: The axis of its heads, if all units must have the same.
    """

    def __init__(
        self, found: Axes, own: str, other: str, networks: tuple[nn.Module, nn.Module], scope: Scope, heads: str | None
    ) -> None:
        self.found, self.own, self.other, self.scope, self.heads = found, own, other, scope, heads
        self.student, self.teacher = networks[0].get_submodule(own), networks[1].get_submodule(other)
        # Rotary positions turn pairs of a head's channels, each by an angle of its place.
        config = getattr(networks[1], "config", None)
        self.turns = any(getattr(config, name, None) is not None for name in ("rope_parameters", "rope_theta"))
        self.num_heads = [getattr(getattr(n, "config", None), "num_attention_heads", None) for n in networks]
        self.matrices = {name: m for name, m in self.student.named_modules() if isinstance(m, _MATRICES)}

    def read(self) -> None:
        """Add its tensors, and the axes within."""
        mine, theirs = self.student.state_dict(), self.teacher.state_dict()
        _check_same_names(self.own, mine, theirs)
        self.found.parts[self.other] = self.scope
        if self.scope.place == "unit":
            self._note_attention()
        if self.scope.place in ("unit", "head"):
            self._note_inner()
        for name, tensor in mine.items():
            path = f"{self.own}.{name}"
            self.found.sources[path] = f"{self.other}.{name}"
            self.found.tensors[path] = self._dims(name, tuple(tensor.shape), tuple(theirs[name].shape))

    def _note_attention(self) -> None:
        """Axes of heads: those of keys, how many queries share one, and their width."""
        projections = list(filter(_QUERY.search, self.matrices))
        attends = any("att" in name for name, _ in self.student.named_modules())
        if attends and not projections and self.num_heads[0] != self.num_heads[1]:
            raise ValueError(
                f"init_student_from_teacher: attentions of {self.num_heads[1]} heads in the teacher and "
                f"{self.num_heads[0]} in the student, and the names in {self.own} do not tell which channels are "
                "whose: give the student as many, or leave the option out"
            )
        for name in projections:
            key = next(other for other in self.matrices if _KEY_OR_VALUE.search(other) and _stem(other) == _stem(name))
            sizes = []
            for network in (self.teacher, self.student):
                width = _head_width(network.get_submodule(name.rpartition(".")[0]))
                queries = _lengths_of(network.get_submodule(name))[0] // width
                keys = _lengths_of(network.get_submodule(key))[0] // width
                sizes.append((keys, queries // keys, width))
            if self.turns and sizes[0][2] != sizes[1][2]:
                raise ValueError(
                    f"init_student_from_teacher: heads of {sizes[0][2]} channels whose positions are rotations cannot "
                    f"begin those of {sizes[1][2]} in {self.own}: give the student heads as wide, and fewer of them"
                )
            for axis, pair in zip(self._heads_of(name), zip(*sizes, strict=True), strict=True):
                self._note(axis, pair)

    def _note_inner(self) -> None:
        """Axes within a feed-forward part, and between the convolutions of a residual branch."""
        for name, matrix in self.matrices.items():
            other = self.teacher.get_submodule(name)
            if _ATTENTION_OUT.search(name):
                continue
            if _DOWN.search(name):
                self._note(self._inner(name), (_lengths_of(other)[1], _lengths_of(matrix)[1]))
            elif (found := _CHAIN.match(name)) and int(found["place"]) < self._last_of_chain(found["branch"]):
                self._note(f"{self.own}.{found['place']}", (_lengths_of(other)[0], _lengths_of(matrix)[0]))

    def _note(self, axis: str, sizes: tuple[int, int]) -> None:
        if self.found.sizes.setdefault(axis, sizes) != sizes:
            raise ValueError(
                f"init_student_from_teacher: {axis} has {self.found.sizes[axis]} channels in teacher and student, and "
                f"{sizes} at {self.own}: what shares channels must have as many everywhere"
            )

    def _dims(self, name: str, mine: tuple[int, ...], theirs: tuple[int, ...]) -> tuple[Dim, ...]:
        """The dimensions on axes of one tensor."""
        if not mine:
            return ()
        path, _, leaf = name.rpartition(".")
        module = self.student.get_submodule(path)
        if isinstance(module, _MATRICES):
            reads, writes = self._reads_and_writes(path)
            if isinstance(module, nn.Conv2d) and module.groups > 1:
                wanted = [Dim(0, reads, "acts")]
            elif leaf == "weight":
                wanted = [Dim(0, writes, "writes"), Dim(1, reads, "reads")]
            else:
                wanted = [Dim(0, writes, "writes")]
        elif leaf == "in_proj_weight":
            wanted = [Dim(0, _layout(self.scope.writes), "writes"), Dim(1, _layout(self.scope.reads), "reads")]
        elif leaf.endswith("bias_table") or self.scope.place == "shared":
            wanted = [Dim(len(mine) - 1, self._heads_of(path)[:2], "acts")]
        elif isinstance(module, nn.Embedding) or (path not in self.matrices and len(mine) > 1):
            wanted = [Dim(len(mine) - 1, _layout(self.scope.writes), "writes")]
        else:
            wanted = [Dim(len(mine) - 1, self._acts_on(path), "acts")]
        dims = tuple(self._fitting(name, dim, mine, theirs) for dim in wanted)
        on_axes = {dim.number for dim in dims}
        for number, (student, teacher) in enumerate(zip(mine, theirs, strict=True)):
            if number not in on_axes and student != teacher:
                raise self._refusal(name, mine, theirs, "no axis of channels")
        return tuple(dim for dim in dims if dim.layout)

    def _reads_and_writes(self, name: str) -> tuple[Layout, Layout]:
        """The layouts of the columns and the rows of a matrix."""
        reads, writes = _layout(self.scope.reads), _layout(self.scope.writes)
        if self.scope.place in ("unit", "head") and not _ATTENTION_OUT.search(name):
            if _UP.search(name):
                return reads, (self._inner(name),)
            if _DOWN.search(name):
                return (self._inner(name),), writes
        if self.scope.place != "unit":
            return reads, writes
        if _QUERY.search(name):
            return reads, self._heads_of(name)
        if _KEY_OR_VALUE.search(name):
            keys, _, width = self._heads_of(name)
            return reads, (keys, width)
        if _ATTENTION_OUT.search(name):
            return self._heads_of(name), writes
        if found := _CHAIN.match(name):
            place, last = int(found["place"]), self._last_of_chain(found["branch"])
            inner = f"{self.own}.{place - 1}", f"{self.own}.{place}"
            return (inner[0],) if place else reads, (inner[1],) if place < last else writes
        return reads, writes

    def _acts_on(self, path: str) -> Layout:
        """The layout of what a normalisation, or a scale, acts on."""
        if re.search(r"(^|\.)[qk]_norm$", path):
            return (self._heads_of(path)[2],)
        # As a convolution beside it writes.
        beside = f"{path.rpartition('.')[0]}.convolution".lstrip(".")
        if beside in self.matrices:
            return self._reads_and_writes(beside)[1]
        return _layout(self.scope.reads or self.scope.writes)

    def _fitting(self, name: str, dim: Dim, mine: tuple[int, ...], theirs: tuple[int, ...]) -> Dim:
        """A dimension with as many copies of its layout as the tensor has."""
        student, teacher = mine[dim.number], theirs[dim.number]
        # Heads are not known where the names of an attention do not tell them, as DeBERTa's.
        if dim.layout and all(isinstance(factor, int) or factor in self.found.sizes for factor in dim.layout):
            for_teacher, for_student = (math.prod(lengths) for lengths in self.found.lengths(dim.layout))
            copies = teacher // for_teacher
            if copies and (copies * for_teacher, copies * for_student) == (teacher, student):
                return dim._replace(layout=(copies, *dim.layout) if copies > 1 else dim.layout)
        if student == teacher:
            # Pixels, labels, a vocabulary.
            return dim._replace(layout=())
        raise self._refusal(name, mine, theirs, " x ".join(map(str, dim.layout)) or "no axis of channels")

    def _refusal(self, name: str, mine: tuple[int, ...], theirs: tuple[int, ...], axis: str) -> ValueError:
        return ValueError(
            f"init_student_from_teacher: {self.own}.{name} is {list(mine)} and the teacher's {list(theirs)}, which "
            f"does not follow from {axis}: give a student whose parts are narrower alike, or leave the option out"
        )

    def _heads_of(self, name: str) -> tuple[str, str, str]:
        where = self.heads or f"{self.own}.{_stem(name)}"
        return f"{where}.heads", f"{where}.queries", f"{where}.head width"

    def _inner(self, name: str) -> str:
        """The axis within a feed-forward part, of which a unit may have two, such as Conformers' `ffn1` and `ffn2`."""
        part = name.rpartition(".")[0] if name.endswith("_dense") else ""
        return f"{self.own}.{part}.inner" if part else f"{self.own}.inner"

    def _last_of_chain(self, branch: str) -> int:
        places = [found for name in self.matrices if (found := _CHAIN.match(name)) and found["branch"] == branch]
        return max(int(found["place"]) for found in places)


_MATRICES = (nn.Linear, nn.Conv2d)


def _check_same_names(path: str, mine: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())[0]
        raise ValueError(
            f"init_student_from_teacher: one of the networks alone has {odd!r} in {path}: give a student built as its "
            "teacher is, or leave the option out"
        )


def _layout(axis: str | None) -> Layout:
    return () if axis is None else (axis,)


def _lengths_of(matrix: nn.Module) -> tuple[int, int]:
    """Rows and columns."""
    if isinstance(matrix, nn.Linear):
        return matrix.out_features, matrix.in_features
    if isinstance(matrix, nn.Conv2d):
        return matrix.out_channels, matrix.in_channels
    raise TypeError(f"{type(matrix).__name__} is no matrix")


def _stem(name: str) -> str:
    """Where the attention stands that a module is of."""
    steps = name.split(".")
    at = next((i for i, step in enumerate(steps) if "att" in step), len(steps) - 2)
    return ".".join(steps[: at + 1])


def _head_width(attention: nn.Module) -> int:
    for name in ("head_dim", "attention_head_size"):
        if isinstance(found := getattr(attention, name, None), int):
            return found
    raise ValueError(f"init_student_from_teacher: {type(attention).__name__} does not say how wide its heads are")
