"""The graphs of a repository, and the sessions over them that a stage's answers run through.

Notation: a chain is the sessions of one stage, in their order: each teacher block has a graph, and what comes behind
the leading ones has another.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, Self
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from pwl_hf.modeling.arrays.mapped import MappedFile, TensorFile
from pwl_hf.modeling.arrays.packing import UnpackedFile
from pwl_hf.modeling.errors import InputError, RepositoryError
from pwl_hf.modeling.graphs.index import Graph, GraphIndex, files_of
from pwl_hf.modeling.graphs.session import GraphSession
from pwl_hf.modeling.repository.layout import quantised_file, refinement_file, teacher_shard
from pwl_hf.modeling.repository.manifest import ListedFile, Manifest
from pwl_hf.modeling.repository.source import Repository, Verified
from pwl_hf.modeling.repository.verification import is_unchanged
from pwl_hf.modeling.sources import Sources
from pwl_hf.runtime.settings import Settings

Inputs = Mapping[str, NDArray[Any]]


class Like(NamedTuple):
    """An array's shape and dtype, to make others like it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Self:
        """Of an array."""
        return cls(array.shape, array.dtype)

    def filled(self, value: int = 0) -> NDArray[Any]:
        """One of a single value."""
        return np.full(self.shape, value, self.dtype)


class Key(NamedTuple):
    """A graph, and in which precision it runs.

    Args:
        path: Its path.
        low: The blocks of the teacher (from 1) that it runs in low precision.
    """

    path: str
    low: tuple[int, ...]


# The files that tensors are read from: one, or low precision and what makes it exact.
Origin = tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What a call was of, to make another like it.

    Args:
        graphs: Its graphs.
        inputs: What the model was called with.
        outputs: What each graph gave.
    """

    graphs: tuple[Key, ...]
    inputs: Mapping[str, Like]
    outputs: tuple[Like, ...]


@dataclass(frozen=True)
class Chain:
    """The sessions that a stage's answers run through; it does not change, and holds on to its files.

    Args:
        sources: The stage's mask.
        graphs: Which graphs they are of, in their order.
        sessions: The sessions.
        files: What each runs over, by the files that it was read from.
        process: The process that made it.
    """

    sources: Sources
    graphs: tuple[Key, ...]
    sessions: tuple[GraphSession, ...]
    files: Mapping[Key, Mapping[Origin, TensorFile]]
    process: int = field(default_factory=os.getpid)

    def __call__(self, inputs: Inputs, first: int = 0, features: NDArray[Any] | None = None) -> Answer:
        """Run it to its end.

        Args:
            inputs: What the model is called with, by name.
            first: The first session to run, from 0.
            features: What the one before it would give.
        """
        outputs = []
        for session in self.sessions[first:]:
            features = session(features, inputs)
            outputs.append(Like.of(features))
        if features is None:
            raise ValueError("there is no graph to run")
        return Answer(features, tuple(outputs))

    def warm(self, seen: Seen) -> Seen:
        """Pay for the first run of what is new, on inputs like those of the last call.

        Sessions that this call ran through are not run again, as far as it is known what they give.
        """
        known = 0
        while known < len(self.sessions) - 1 and seen.graphs[: known + 1] == self.graphs[: known + 1]:
            known += 1
        # A mask lets all through: networks may fail on a sample of padding alone.
        inputs = {name: like.filled(int(name == "attention_mask")) for name, like in seen.inputs.items()}
        outputs = seen.outputs[:known]
        answer = self(inputs, known, outputs[-1].filled() if outputs else None)
        return Seen(self.graphs, seen.inputs, (*outputs, *answer.outputs))


class Answer(NamedTuple):
    """The logits of a call, and what each session gave on the way."""

    logits: NDArray[Any]
    outputs: tuple[Like, ...]


class Graphs:
    """The graphs of one repository, which become chains.

    Args:
        repository: Where the files are.
        manifest: Its manifest.
        index: What its graphs are.
        settings: How onnxruntime is to run them.
        verified: What `Repository.verify` said of files that it was asked about before.
    """

    def __init__(
        self,
        repository: Repository,
        manifest: Manifest,
        index: GraphIndex,
        settings: Settings,
        verified: Mapping[str, Verified] | None = None,
    ) -> None:
        self.repository, self.manifest, self.index, self.settings = repository, manifest, index, settings
        # Path in the repository -> its local path, and what the file system said when it was compared.
        self._verified = dict(verified or {})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_verified": {}}

    def files_of(self, sources: Sources, low: Collection[int] = ()) -> tuple[ListedFile, ...]:
        """The graphs and weight files that a stage's path needs.

        Args:
            sources: The stage's mask.
            low: Blocks of the teacher (from 1) that will be here in low precision by then.
        """
        graphs = self.index.graphs_along(sources)
        attached = {entry.path: entry for entry in self.manifest.attachments}
        taken = files_of(graphs)
        weights = self.repository.files_for(self.manifest, sources, low=low)
        return (
            *(attached[graph.path] for graph in graphs),
            *(entry for entry in weights if entry.path in taken or entry.tier_block is not None),
        )

    def prepare(
        self,
        files: Sequence[ListedFile],
        fetched: Mapping[str, Path] | None = None,
        cancelled: Event | None = None,
    ) -> None:
        """Fetch files and compare them with the manifest, all or none; those that were are not compared again.

        Raises:
            RepositoryError: If one is not what the manifest says.
            FetchError: If one cannot be downloaded.
        """
        missing = [entry for entry in files if not is_unchanged(self._verified.get(entry.path))]
        self._verified |= self.repository.verify(missing, fetched, cancelled=cancelled)

    def chain(self, sources: Sources, present: Chain | None = None) -> Chain:
        """The chain of a stage.

        Args:
            sources: The stage's mask.
            present: The chain that the model is at, whose sessions and files are used again.

        Raises:
            RepositoryError: If a file is not what the manifest says, or onnxruntime refuses a graph.
            InputError: If a provider does not come up.
        """
        graphs = {self._key(graph, sources): graph for graph in self.index.graphs_along(sources)}
        sessions = dict(zip(present.graphs, present.sessions, strict=True)) if present is not None else {}
        taken = dict(present.files) if present is not None else {}
        files = {origin: file for own in taken.values() for origin, file in own.items()}
        # 1. Everything is there, and what it should be; what is mapped stays as it is.
        new = [key for key in graphs if key not in sessions]
        origins = {path: self._origin(path, sources) for key in new for path in graphs[key].tensors}
        here = {key.path for key in sessions} | {path for origin in files for path in origin}
        self.prepare([entry for entry in self.files_of(sources) if entry.path not in here])
        # 2. The files of what is new, each mapped, or merged, once.
        for path, origin in origins.items():
            if origin not in files:
                files[origin] = self._read(path, origin)
        # 3. Its sessions.
        for key in new:
            sessions[key] = self._session(graphs[key], {path: files[origins[path]] for path in graphs[key].tensors})
            taken[key] = {origins[path]: files[origins[path]] for path in graphs[key].tensors}
        return Chain(
            sources, tuple(graphs), tuple(sessions[key] for key in graphs), {key: taken[key] for key in graphs}
        )

    def _key(self, graph: Graph, sources: Sources) -> Key:
        low = (k for k in sources.low_blocks if teacher_shard(k, len(sources)) in graph.tensors)
        return Key(graph.path, tuple(low))

    def _origin(self, path: str, sources: Sources) -> Origin:
        """The files that the tensors of a file are read from at a stage."""
        count = len(sources)
        for block in sources.blocks("teacher"):
            if path == teacher_shard(block, count):
                if block in sources.low_blocks:
                    return (quantised_file(block, count),)
                if self.repository.refines(self.manifest, block):
                    return quantised_file(block, count), refinement_file(block, count)
        return (path,)

    def _read(self, path: str, origin: Origin) -> TensorFile:
        local = [self._verified[path][0] for path in origin]
        found: TensorFile
        if origin[0].startswith("quantised/"):
            shard = self.manifest.get(path)
            size = shard.bytes if shard is not None else 0
            found = UnpackedFile(local[0], local[1] if len(local) > 1 else None, self.manifest.dtype, size)
        else:
            found = MappedFile(local[0])
        for file in origin:
            self._check_unchanged(file)
        return found

    def _session(self, graph: Graph, files: Mapping[str, TensorFile]) -> GraphSession:
        content = self._verified[graph.path][0].read_bytes()
        self._check_unchanged(graph.path)
        made = GraphSession(graph, content, files, self.settings.make, self.settings.providers)
        if missing := [name for name in self.settings.names if name not in made.providers]:
            raise InputError(
                f"providers: {missing[0]!r} did not come up, and onnxruntime would go on with "
                f"{', '.join(made.providers)}: see what it said, or leave it out"
            )
        _ALIVE.add(made)
        return made

    def _check_unchanged(self, path: str) -> None:
        if not is_unchanged(self._verified.get(path)):
            raise RepositoryError(f"{self.repository}: {path!r} was replaced while it was being read; load it again")


# The sessions of this process, and in a forked one those that it was born with: the end of one of these would wait for
# threads that are not there.
_ALIVE: WeakSet[GraphSession] = WeakSet()
_INHERITED: list[GraphSession] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_ALIVE))
