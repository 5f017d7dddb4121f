"""`onnx/index.json`: what the exported graphs of a repository are, and what a reader needs beside them (no torch).

A graph holds no weights. Its initialisers are external data in the repository's own safetensors files, and are named
`FILE:TENSOR`, so a reader maps the files and hands the tensors over by name.

    onnx/index.json                       this index
    onnx/student.onnx                     stage 0
    onnx/teacher-0000k.onnx               teacher block k
    onnx/tail-TTSS.onnx                   of a stage's mask: what comes behind its leading teacher blocks
    teacher/model.onnx                    the whole teacher; its locations are of its own folder, for any onnxruntime

In `onnx/` locations are relative to the repository's root: `Graph.tensors` tells them as well.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..bounds import MAX_BLOCKS, MAX_FILES, MAX_LABELS, check_count, check_document
from ..errors import RepositoryError
from ..repository.manifest import ListedFile, Manifest, check_path
from ..sources import Sources
from ..task_names import FIRST_TASK, TASKS
from .tokenization import Tokenization

INDEX_FORMAT = 1
INDEX_FILE = "onnx/index.json"
STUDENT_GRAPH = "onnx/student.onnx"
TEACHER_GRAPH = "teacher/model.onnx"
# The name of the features between two graphs, where they go in and where they come out.
FEATURES_IN, FEATURES_OUT, LOGITS = "features_in", "features", "logits"
# What inputs are of.
DTYPES = ("float32", "int64")


def block_graph(block: int) -> str:
    """The graph of teacher block `block` (from 1)."""
    return f"onnx/teacher-{block:05d}.onnx"


def tail_graph(sources: Sources) -> str:
    """The graph of what comes behind a mask's leading teacher blocks."""
    return f"onnx/tail-{sources}.onnx"


def graphs_of(sources: Sources) -> tuple[str, ...]:
    """The graphs that a mask's path runs through, in their order: low precision has those of the block itself."""
    sources = sources.exact
    leading = next((i for i, role in enumerate(sources.roles) if role != "teacher"), len(sources))
    blocks = tuple(block_graph(block) for block in range(1, leading + 1))
    if leading == len(sources):
        return blocks
    return (*blocks, tail_graph(sources) if sources.is_mixed else STUDENT_GRAPH)


def attached_graphs(manifest: Manifest, masks: Iterable[Sources]) -> tuple[ListedFile, ...]:
    """The index and the graphs that the paths of masks run through, as attachments of a repository.

    Args:
        manifest: The repository's manifest.
        masks: The masks.

    Returns:
        The files, each once; none for a repository without graphs.

    Raises:
        RepositoryError: If it has an index, and not such a graph.
    """
    attached = {entry.path: entry for entry in manifest.attachments}
    if INDEX_FILE not in attached:
        return ()
    paths = dict.fromkeys([INDEX_FILE, *(path for mask in masks for path in graphs_of(mask))])
    if missing := next((path for path in paths if path not in attached), None):
        raise RepositoryError(f"the repository has {INDEX_FILE}, and no graph {missing!r}: export it again")
    return tuple(attached[path] for path in paths)


def initialiser(file: str, tensor: str) -> str:
    """The name of an initialiser that is a tensor of a file."""
    return f"{file}:{tensor}"


@dataclass(frozen=True)
class Graph(ListedFile):
    """An exported graph.

    Args:
        path: Its path in the repository.
        bytes: Its size.
        sha256: Its hash, in hex digits.
        tensors: The weights that it takes: the names of tensors by file, each in the form of the file.
    """

    tensors: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class GraphIndex:
    """What the exported graphs of a repository are.

    Args:
        fingerprint: That of the weights that they were exported for.
        inputs: The shape of each input of the model by name, -1 for the batch and a free length:
            `{"pixel_values": (-1, 3, 224, 224)}`, `{"input_ids": (-1, -1), ...}`.
        graphs: The graphs by path.
        stages: The mask of each stage, without those of low precision, which run the same graphs.
        labels: The name of each class.
        problem_type: As in the config: how logits become scores, if it says so.
        processor: The repository's `preprocessor_config.json`; None if it has none.
        task: The task of the model, by transformers' Auto class.
        dtypes: Of each input, `float32` or `int64`; of one that it does not name, `float32`.
        tokenizer: How texts become tokens; None if the repository has no `tokenizer.json`.
        min_length: The fewest samples of a sound that networks make a frame of, where that is more than 1.
    """

    fingerprint: str
    inputs: Mapping[str, tuple[int, ...]]
    graphs: Mapping[str, Graph]
    stages: tuple[Sources, ...]
    labels: tuple[str, ...]
    problem_type: str | None
    processor: Mapping[str, Any] | None
    task: str = FIRST_TASK
    dtypes: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Tokenization | None = None
    min_length: int | None = None

    def graphs_for(self, stage: int) -> tuple[Graph, ...]:
        """The graphs that one of its stages runs, in their order."""
        return self.graphs_along(self.stages[stage])

    def graphs_along(self, sources: Sources) -> tuple[Graph, ...]:
        """The graphs that a mask's path runs through, in their order."""
        return tuple(self.graphs[path] for path in graphs_of(sources))

    def to_json(self) -> str:
        """The text of `onnx/index.json`."""
        data = {
            "format_version": INDEX_FORMAT,
            "fingerprint": self.fingerprint,
            "task": self.task,
            "inputs": dict(self.inputs),
            "dtypes": dict(self.dtypes),
            "stages": [{"sources": mask.mask, "graphs": graphs_of(mask)} for mask in self.stages],
            "teacher": TEACHER_GRAPH,
            "graphs": [asdict(graph) for graph in self.graphs.values()],
            "labels": self.labels,
            "problem_type": self.problem_type,
            "processor": self.processor,
            "min_length": self.min_length,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.to_dict(),
        }
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, manifest: Manifest) -> GraphIndex:
        """Read an index, and compare it with the manifest of its repository.

        Args:
            text: The contents of `onnx/index.json`.
            manifest: The repository's manifest.

        Raises:
            RepositoryError: If it is malformed, of a newer format, or of other weights than the manifest's.
        """
        try:
            data = json.loads(text)
            check_document(INDEX_FILE, {**data, "labels": None} if isinstance(data, dict) else data)
        except (ValueError, RecursionError) as error:
            raise RepositoryError(f"{INDEX_FILE} cannot be read: {error}") from error
        data = _typed(data, dict, "the index")
        if (version := _typed(data.get("format_version"), int, "format_version")) > INDEX_FORMAT:
            raise RepositoryError(
                f"{INDEX_FILE} is of format version {version}, this reader knows up to {INDEX_FORMAT}: upgrade pwl-hf"
            )
        masks = [_typed(stage, dict, "a stage") for stage in _typed(data.get("stages"), list, "stages")]
        labels = _typed(data.get("labels"), list, "labels")
        graphs = _typed(data.get("graphs"), list, "graphs")
        try:
            check_count(INDEX_FILE, len(masks) - 1, MAX_BLOCKS, "stages")
            check_count(INDEX_FILE, len(graphs), MAX_FILES, "graphs")
            check_count(INDEX_FILE, len(labels), MAX_LABELS, "labels")
            stages = tuple(Sources(_typed(stage.get("sources"), str, "sources")) for stage in masks)
        except ValueError as error:
            raise RepositoryError(f"{INDEX_FILE}: {error}") from error
        found = [_graph(item) for item in graphs]
        if twice := sorted(path for path, count in Counter(graph.path for graph in found).items() if count > 1):
            raise RepositoryError(f"{INDEX_FILE} lists the graph {twice[0]!r} more than once")
        problem_type, processor = data.get("problem_type"), data.get("processor")
        task, tokenizer = _typed(data.get("task", FIRST_TASK), str, "task"), data.get("tokenizer")
        min_length = data.get("min_length")
        if task not in TASKS:
            raise RepositoryError(f"{INDEX_FILE}: task must be one of {', '.join(TASKS)}, got {task!r:.100}")
        index = cls(
            fingerprint=_typed(data.get("fingerprint"), str, "fingerprint"),
            inputs=_inputs(data.get("inputs")),
            graphs={graph.path: graph for graph in found},
            stages=stages,
            labels=tuple(_typed(label, str, "a label") for label in labels),
            problem_type=None if problem_type is None else _typed(problem_type, str, "problem_type"),
            processor=None if processor is None else _typed(processor, dict, "processor"),
            task=task,
            dtypes=_dtypes(data.get("dtypes", {})),
            min_length=None if min_length is None else _typed(min_length, int, "min_length"),
            tokenizer=None if tokenizer is None else Tokenization.of(INDEX_FILE, _typed(tokenizer, dict, "tokenizer")),
        )
        index._check(manifest)
        return index

    def _check(self, manifest: Manifest) -> None:
        """Refuse an index of other weights, or one whose graphs are not those that the manifest lists."""
        if self.fingerprint != manifest.fingerprint:
            raise RepositoryError(
                f"{INDEX_FILE} is of the weights {self.fingerprint!r:.80}, the repository has {manifest.fingerprint}: "
                "export it again with `pwl-hf export`"
            )
        if self.stages != manifest.schedule.without_tier().masks:
            raise RepositoryError(
                f"{INDEX_FILE} has the stages {' '.join(map(str, self.stages))!r:.200}, the repository has "
                f"{' '.join(map(str, manifest.schedule))!r:.200}: export it again with `pwl-hf export`"
            )
        attached = {entry.path: entry for entry in manifest.attachments}
        for graph in self.graphs.values():
            if attached.get(graph.path) != ListedFile(graph.path, graph.bytes, graph.sha256):
                raise RepositoryError(f"{INDEX_FILE} lists the graph {graph.path!r}, and the manifest not as that")
            for file in graph.tensors:
                if manifest.get(file) is None:
                    raise RepositoryError(
                        f"{INDEX_FILE}: {graph.path!r} takes tensors of {file!r}, which is not listed"
                    )
        for stage, mask in enumerate(self.stages):
            needed = {entry.path for entry in manifest.files_for(mask)}
            for path in graphs_of(mask):
                if path not in self.graphs:
                    raise RepositoryError(f"{INDEX_FILE} does not list {path!r}, which stage {stage} needs")
                if other := min(self.graphs[path].tensors.keys() - needed, default=None):
                    raise RepositoryError(f"{INDEX_FILE}: {path!r} takes tensors of {other!r}, not of stage {stage}")


def _graph(data: Any) -> Graph:
    data = _typed(data, dict, "a graph")
    path = _typed(data.get("path"), str, "path")
    check_path(path, (".onnx",))
    digest = _typed(data.get("sha256"), str, f"sha256 of {path!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise RepositoryError(f"{INDEX_FILE}: sha256 of {path!r} must be 64 hex digits, got {digest!r:.100}")
    tensors = {}
    for file, names in _typed(data.get("tensors"), dict, f"tensors of {path!r}").items():
        check_path(file)
        tensors[file] = tuple(_typed(name, str, f"tensors of {path!r}") for name in _typed(names, list, "tensors"))
    return Graph(path, _typed(data.get("bytes"), int, f"bytes of {path!r}"), digest, tensors)


def _inputs(data: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(_typed(size, int, f"a size of {name!r:.100}") for size in _typed(shape, list, "an input's shape"))
        for name, shape in _typed(data, dict, "inputs").items()
    }


def _dtypes(data: Any) -> dict[str, str]:
    found = dict(_typed(data, dict, "dtypes"))
    for name, dtype in found.items():
        if dtype not in DTYPES:
            raise RepositoryError(f"{INDEX_FILE}: {name!r:.100} must be of {' or '.join(DTYPES)}, got {dtype!r:.100}")
    return found


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RepositoryError(f"{INDEX_FILE}: {where} must be {kind.__name__}, got {value!r:.100}")
    return value


def files_of(graphs: Iterable[Graph]) -> list[str]:
    """The weight files that graphs take tensors of, each once."""
    return list(dict.fromkeys(file for graph in graphs for file in graph.tensors))
