"""Tracing a piece into a graph whose weights are named and not held."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass, IdentityEliminationPass
from onnxscript.optimizer import fold_constants, remove_unused_nodes

from ..families.base import Features
from .examples import Examples
from .pieces import Piece, Traced

# Later ones fuse attention into one operator that onnxruntime's CPU kernels run slower.
OPSET = 20
_MAX_BATCH = 1 << 20
# Numbers of a constant that is made by folding.
_MAX_FOLDED = 8192
# What a piece takes besides inputs of the model.
FEATURES = "features"


@dataclass(frozen=True)
class Template:
    """The graph of a kind of piece.

    Args:
        proto: The graph; its initialisers are constants.
        weights: Of each weight, its name in `Piece.tensors`: values of the graph that nothing gives yet.
        inputs: What it takes: `FEATURES`, or the name of an input of the model, by its name in the graph.
        output: What it gives, by its name in the graph.
    """

    proto: onnx.ModelProto
    weights: tuple[str, ...]
    inputs: Mapping[str, str]
    output: str


def trace(piece: Piece, features: Features | None, examples: Examples, weights: set[str]) -> Template:
    """Trace a piece; the batch is free, and so is the length where samples are of any.

    Args:
        piece: The piece.
        features: An example of the features that it takes, of at least two samples.
        examples: What the model is called with.
        weights: Those of its tensors that lie in files; all others become constants of the graph.

    Raises:
        RuntimeError: If torch cannot export it.
    """
    module = Traced(
        piece, features.grid if features is not None else None, piece.takes, takes_features=features is not None
    )
    given = [*([features.tensor] if features is not None else []), *(examples.traced[name] for name in piece.takes)]
    names = [*([FEATURES] if features is not None else []), *piece.takes]
    free = [{0: torch.export.Dim("batch", min=1, max=_MAX_BATCH)} for _ in given]
    for name, dimensions in zip(names, free, strict=True):
        if examples.has_free_length if name == FEATURES else -1 in examples.shapes[name][1:]:
            # Which lengths go together is for torch to find: features are as many as a convolution makes of samples.
            dimensions[1] = torch.export.Dim.DYNAMIC
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            tuple(given),
            dynamo=True,
            # What it would fold is hardly a tensor of the checkpoint any more; onnxruntime folds it by itself.
            optimize=False,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            dynamic_shapes=(tuple(free),),
            input_names=[f"in.{name}" for name in names],
            output_names=["out"],
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model
    held = [name for name in model.graph.initializers if name in weights]
    _tidy(model, held)
    if any(attribute.type.name.startswith("GRAPH") for node in model.graph for attribute in node.attributes.values()):
        raise RuntimeError("its graph has conditions or loops, which are not exported")
    # As they are called now: of a piece that hands on what it gets, the input has the output's name.
    proto = onnx_ir.to_proto(model)
    output = proto.graph.output[0].name
    used = {output, *(name for node in proto.graph.node for name in node.input)}
    # What it is called with and does not look at is no input of it.
    taken = {value.name: name for value, name in zip(proto.graph.input, names, strict=True) if value.name in used}
    return Template(proto, tuple(held), taken, output)


def _tidy(model: onnx_ir.Model, held: list[str]) -> None:
    """Fold what is no weight, let go of the weights' values, and of what only a debugger reads."""
    graph = model.graph
    for name in held:
        weight = graph.initializers.pop(name)
        # Nothing that depends on a weight may be folded into a constant.
        weight.const_value = None
        graph.inputs.append(weight)
    # What is large is left to onnxruntime: the masks of Swin's windows are 615 kB.
    fold_constants(model, output_size_limit=_MAX_FOLDED)
    IdentityEliminationPass()(model)
    remove_unused_nodes(model)
    DeduplicateInitializersPass()(model)
    while graph.inputs and graph.inputs[-1].name in held:
        graph.inputs.pop()
    graph.metadata_props.clear()
    model.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's words on each export: what goes wrong is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
