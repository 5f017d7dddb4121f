"""One graph of several pieces, whose weights are ranges of the repository's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import onnx

from ..arrays.mapped import TensorPlace
from ..graphs.index import FEATURES_IN, LOGITS, initialiser
from .tracing import FEATURES, OPSET, Template

# The newest that opset 20 needs: older runtimes can read it.
_IR_VERSION = 10
# What torch casts to float32 when it loads: numbers that count or point stay what they are.
_DTYPES = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
_CAST = {"F64", "F16", "BF16"}


@dataclass(frozen=True)
class Stored:
    """A tensor of a repository's file.

    Args:
        file: The file's path in the repository.
        name: The tensor's name in it.
        place: Where it lies there.
    """

    file: str
    name: str
    place: TensorPlace

    @property
    def initialiser(self) -> str:
        """What it is called in graphs."""
        return initialiser(self.file, self.name)


@dataclass(frozen=True)
class Placed:
    """A piece of a graph: a template, and what its weights are.

    Args:
        template: The template.
        weights: For each of the template's weights, the tensor.
    """

    template: Template
    weights: Mapping[str, Stored]


class Ends(NamedTuple):
    """What goes into a graph.

    Args:
        shape: Its shape, -1 for what is free: the batch, and the length.
        dtype: `float32` or `int64`.
    """

    shape: Sequence[int]
    dtype: str = "float32"


def chain(
    pieces: Sequence[Placed],
    inputs: Mapping[str, Ends],
    *,
    features: Ends | None = None,
    output: str = LOGITS,
    folder: str = "",
) -> onnx.ModelProto:
    """A graph of pieces that follow each other.

    Args:
        pieces: The pieces.
        inputs: Each input of the model, by name.
        features: The features that it takes; None if it begins with the model's inputs.
        output: What its output is called: `LOGITS` or `FEATURES_OUT`.
        folder: The folder that locations are relative to: all its files must lie in it.
    """
    model = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="pwl-hf")
    model.opset_import.add(domain="", version=OPSET)
    graph = model.graph
    graph.name = "pwl"
    weights = {stored.initialiser: stored for piece in pieces for stored in piece.weights.values()}
    constants: dict[bytes, str] = {}
    taken: dict[str, None] = {}
    # 1. Weights that are stored in another dtype are cast.
    graph.node.extend(_cast(stored) for stored in weights.values() if stored.place.dtype in _CAST)
    before = FEATURES_IN
    for number, piece in enumerate(pieces):
        proto, template = piece.template.proto.graph, piece.template
        # 2. What the piece takes: the features before it, inputs of the model, and weights by the names of their files.
        given = {name: before if own == FEATURES else own for name, own in template.inputs.items()}
        taken |= dict.fromkeys(name for name in given.values() if name == FEATURES_IN or name != before)
        if template.output in given:
            # It hands on what it gets, as the embedder of a VGG does.
            before = given[template.output]
            continue
        given |= {name: _as_float(stored) for name, stored in piece.weights.items()}
        before = given[template.output] = output if number == len(pieces) - 1 else f"{number}/out"
        # 3. Its constants, each content once.
        for constant in proto.initializer:
            unnamed = onnx.TensorProto()
            unnamed.CopyFrom(constant)
            unnamed.ClearField("name")
            content = unnamed.SerializeToString(deterministic=True)
            if content not in constants:
                constants[content] = unnamed.name = f"{number}/{constant.name}"
                graph.initializer.append(unnamed)
            given[constant.name] = constants[content]
        # 4. Its nodes, whose values have names of their own.
        for node in proto.node:
            graph.node.add().CopyFrom(node)
            _rename(graph.node[-1], f"{number}/", given)
    # 5. The ends of the graph, and where the weights lie.
    for name in taken:
        ends, length = (features, "steps") if name == FEATURES_IN and features is not None else (inputs[name], "length")
        sizes = ["batch", *(length if size == -1 else size for size in ends.shape[1:])]
        graph.input.append(onnx.helper.make_tensor_value_info(name, _DTYPES[ends.dtype], sizes))
    graph.output.add().CopyFrom(pieces[-1].template.proto.graph.output[0])
    graph.output[0].name = output
    for place, dimension in enumerate(graph.output[0].type.tensor_type.shape.dim):
        if place == 0 or dimension.HasField("dim_param"):
            dimension.CopyFrom(onnx.TensorShapeProto.Dimension(dim_param="steps" if place else "batch"))
    graph.initializer.extend(_external(stored, folder) for stored in weights.values())
    return model


def tensors_by_file(pieces: Iterable[Placed]) -> dict[str, tuple[str, ...]]:
    """The names of the tensors that pieces take, by file."""
    found: dict[str, dict[str, None]] = {}
    for piece in pieces:
        for stored in piece.weights.values():
            found.setdefault(stored.file, {})[stored.name] = None
    return {file: tuple(names) for file, names in sorted(found.items())}


def _rename(node: onnx.NodeProto, prefix: str, given: Mapping[str, str]) -> None:
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            if name:
                names[place] = given.get(name, prefix + name)
    node.name = ""


def _external(stored: Stored, folder: str) -> onnx.TensorProto:
    location = PurePosixPath(stored.file)
    place = stored.place
    tensor = onnx.TensorProto(name=stored.initialiser, data_type=place.format.onnx, dims=place.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    where = {
        "location": (location.relative_to(folder) if folder else location).as_posix(),
        "offset": place.offset,
        "length": place.length,
    }
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _as_float(stored: Stored) -> str:
    return f"{stored.initialiser}:float32" if stored.place.dtype in _CAST else stored.initialiser


def _cast(stored: Stored) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [stored.initialiser], [_as_float(stored)], to=onnx.TensorProto.FLOAT)
