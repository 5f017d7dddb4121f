"""Every graph of a model: its student, its teacher block by block and whole, and the tail of each stage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch

from ..arrays.mapped import MappedFile
from ..errors import SaveError
from ..families.base import Features
from ..graphs.index import FEATURES_OUT, LOGITS, TEACHER_GRAPH, Graph, block_graph, graphs_of
from ..parts.parts import Parts
from ..parts.router import Router
from ..parts.weights import statistics_names
from ..repository.layout import statistics_file
from ..routes.route import Route
from ..schedule import Schedule
from ..sources import Sources
from .chaining import Ends, Placed, Stored, chain, tensors_by_file
from .examples import Examples
from .pieces import Piece, digest, piece_of_converter, pieces_of_block
from .tracing import Template, trace


class Exported(NamedTuple):
    """A graph as it is written.

    Args:
        graph: What the index says of it.
        content: Its bytes.
    """

    graph: Graph
    content: bytes


class GraphWriter:
    """Makes the graphs of a model whose parts are all resident, in float32.

    Args:
        parts: The model's parts, as they were read from a repository.
        schedule: The masks of its stages.
        files: The repository's weight files by path.
        examples: What the model is called with.

    Raises:
        SaveError: If a layer cannot be exported.
    """

    def __init__(
        self,
        parts: Parts,
        schedule: Schedule,
        files: Mapping[str, MappedFile],
        examples: Examples,
    ) -> None:
        self._schedule, self._examples = schedule, examples
        self._router, self._given = Router(parts), examples.given(examples.traced)
        self._templates: dict[tuple[object, ...], Template] = {}
        self._stored = _stored_tensors(parts, schedule, files)

    def graphs(self) -> dict[str, Exported]:
        """All graphs by path."""
        teacher = self._schedule.masks[-1]
        blocks, before = self._blocks(teacher)
        found = {TEACHER_GRAPH: self._graph(TEACHER_GRAPH, [p for block in blocks for p in block], None, LOGITS)}
        for number, block in enumerate(blocks, start=1):
            output = LOGITS if number == len(blocks) else FEATURES_OUT
            found[block_graph(number)] = self._graph(block_graph(number), block, before[number - 1], output)
        for mask in self._schedule:
            *leading, last = graphs_of(mask)
            if last not in found:
                tail, before = self._blocks(mask, first=len(leading) + 1)
                found[last] = self._graph(last, [p for block in tail for p in block], before[0], LOGITS)
        return dict(sorted(found.items()))

    def _graph(self, path: str, pieces: list[Placed], before: Features | None, output: str) -> Exported:
        folder = path.rpartition("/")[0] if path == TEACHER_GRAPH else ""
        content = chain(
            pieces,
            {name: Ends(shape, self._examples.dtypes[name]) for name, shape in self._examples.shapes.items()},
            features=None if before is None else self._features(before),
            output=output,
            folder=folder,
        ).SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        return Exported(Graph(path, len(content), digest, tensors_by_file(pieces)), content)

    def _features(self, features: Features) -> Ends:
        """What features are between two graphs."""
        _, length, *rest = features.tensor.shape
        return Ends((-1, -1 if self._examples.has_free_length else length, *rest), "float32")

    def _blocks(self, mask: Sources, first: int = 1) -> tuple[list[list[Placed]], list[Features | None]]:
        """The pieces of each block of a mask from `first` on, each behind its converter, and what goes into each."""
        route = self._router.of(mask.mask)
        with torch.no_grad():
            outputs = route(self._given).outputs
        blocks, before = [], []
        for block in range(first, len(mask) + 1):
            features = outputs[block - 2] if block > 1 else None
            before.append(features)
            blocks.append(self._pieces(route, block, features))
        return blocks, before

    def _pieces(self, route: Route, block: int, features: Features | None) -> list[Placed]:
        converter = route.converters[block - 2] if block > 1 else None
        pieces = [piece_of_converter(converter)] if converter is not None else []
        pieces += pieces_of_block(route, block, tuple(self._examples.shapes), self._examples.settings)
        placed = []
        for piece in pieces:
            try:
                placed.append(self._placed(piece, features))
            except Exception as error:  # whatever torch, onnxscript and the network's own code raise
                raise SaveError(
                    f"block {block} of {route.sources} ({piece.kind[0]}) cannot be exported: "
                    f"{type(error).__name__}: {error}"
                ) from error
            with torch.no_grad():
                after = piece.call(features, self._given)
            features = after if isinstance(after, Features) else None
        return placed

    def _placed(self, piece: Piece, features: Features | None) -> Placed:
        """A piece over its weights; its template is made once for all that are built alike."""
        tensors = piece.tensors()
        weights = {name: self._stored[id(t)] for name, t in tensors.items() if id(t) in self._stored}
        size = None if features is None else (tuple(features.tensor.shape[1:]), features.grid)
        # Tensors that are one and the same are so in the graph; those of no file are constants of it.
        first: dict[int, str] = {}
        tied = tuple(first.setdefault(id(t), name) for name, t in tensors.items())
        constants = tuple((name, digest(t)) for name, t in tensors.items() if name not in weights)
        key = (piece.signature(), size, tuple(weights), tied, constants)
        if key not in self._templates:
            self._templates[key] = trace(piece, features, self._examples, set(weights))
        template = self._templates[key]
        return Placed(template, {name: weights[name] for name in template.weights})


def _stored_tensors(parts: Parts, schedule: Schedule, files: Mapping[str, MappedFile]) -> dict[int, Stored]:
    """Where each tensor of a model lies, by its identity: routes run over the very parameters of the model."""
    found: dict[int, Stored] = {}

    def note(tensor: torch.Tensor, file: str, name: str) -> None:
        found[id(tensor)] = Stored(file, name, files[file].places[name])

    model = parts.networks.model
    for part in parts.resident():
        for full_name, spec in part.specs.items():
            path, _, leaf = full_name.rpartition(".")
            if part.file in files:
                note(getattr(model.get_submodule(path), leaf), part.file, spec.checkpoint_name)
    for mask in schedule:
        if mask.mask in parts.statistics:
            for name, full_name in statistics_names(mask, parts.networks.blueprints).items():
                note(parts.statistics[mask.mask][full_name], statistics_file(mask), name)
    return found
