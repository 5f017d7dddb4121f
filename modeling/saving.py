"""Writing a repository: which files it has, which are copied unchanged, and how they come into place.

The plan is made first, without writing or downloading: for each weight file either the entry it is copied
from, or the tensors it is made of. Publishing uses the same plan.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging

from .configuration_pwl import PWLConfig
from .errors import FetchError, PWLError, RepositoryError, SaveError
from .files import beside, copy_file, write_text
from .manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    Metric,
    file_of,
    is_owned,
    statistics_file,
    teacher_shard,
)
from .repository import Repository
from .sources import Piece, Sources
from .verification import sha256_of
from .weights import STUDENT_PREFIX, Tensors, WeightStore, statistics_names

if TYPE_CHECKING:
    from .staged_model import PWLPreTrainedModel

PROCESSOR_FILE = "preprocessor_config.json"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PlannedFile:
    """A weight file to be.

    Args:
        path: Its path in the repository.
        parameters: How many parameters it holds.
        entry: The file of the model's own repository that it is a copy of, or None.
        tensors: Otherwise what it is made of, by name in the file.
    """

    path: str
    parameters: int
    entry: FileEntry | None
    tensors: Callable[[], Tensors] | None


def plan_files(model: PWLPreTrainedModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> list[PlannedFile]:
    """The weight files of a model's repository, from whatever stage it is at.

    Args:
        model: The model.
        state_dict: Tensors to take in place of the model's own, by full name.

    Raises:
        ValueError: If the resident tensors are of several dtypes.
        RepositoryError: If a file that must be read is not what the manifest says.
    """
    return _Planner(model, state_dict or {}).plan()


def save_repository(
    model: PWLPreTrainedModel,
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor] | None = None,
    place: Callable[[PlannedFile, Path], FileEntry | None] | None = None,
) -> Manifest:
    """Write a model's repository into a folder; see `PWLForImageClassification.save_pretrained`.

    Args:
        model: The model.
        directory: The folder.
        state_dict: Tensors to take in place of the model's own, by full name.
        place: Asked first for each weight file: puts it into its place by itself and says what it is, or returns None.
    """
    if os.path.isfile(directory):
        raise ValueError(f"save_directory must be a folder, {os.fspath(directory)!r} is a file")
    root = Path(directory)
    store = model._store
    entries = []
    for planned in plan_files(model, state_dict):
        target = root / planned.path
        placed = place(planned, target) if place is not None else None
        if placed is not None:
            entries.append(placed)
        elif planned.entry is not None and store is not None:
            local = store.local(planned.path)
            with _writing(target):
                copy_file(local, target)
            entries.append(planned.entry)
        elif planned.tensors is not None:
            entries.append(write_tensors(target, planned.path, planned.tensors(), planned.parameters))
    manifest = new_manifest(model, entries)
    for path, text in {**text_files(model, manifest), MANIFEST_FILE: manifest.to_json()}.items():
        with _writing(root / path):
            write_text(root / path, text)
    kept = {entry.path for entry in manifest.files}
    for folder in (root, *(root / name for name in ("teacher", "converters", "statistics"))):
        for found in folder.glob("*"):
            path = found.relative_to(root).as_posix()
            if found.is_file() and is_owned(path) and path not in kept:
                with _writing(found):
                    found.unlink(missing_ok=True)
    if store is not None and store.repository.commit is None:
        own = Path(store.repository.name, store.repository.subfolder)
        if own.exists() and own.samefile(root):
            # The files under the model are these now.
            model._store = WeightStore(store.repository, manifest, model._blueprints)
            model.config.fingerprint = manifest.fingerprint
    return manifest


def new_manifest(model: PWLPreTrainedModel, entries: list[FileEntry]) -> Manifest:
    """The manifest of these files; metrics are kept only if every weight is the one they were measured on."""
    manifest = Manifest.build(str(model.dtype).removeprefix("torch."), model.num_stages, entries, {})
    if model._store is not None and model._store.manifest.fingerprint == manifest.fingerprint:
        return manifest.with_metrics({stage.stage: stage.metrics for stage in model._store.manifest.stages})
    return manifest


def text_files(model: PWLPreTrainedModel, manifest: Manifest) -> dict[str, str]:
    """Everything besides weights and manifest: configs, the teacher's index, remote code, the image processor."""
    config = _saved_config(model, manifest)
    teacher = config.teacher_config
    texts = {
        "config.json": config.to_json_string(),
        "teacher/config.json": teacher.to_json_string(),
        "teacher/model.safetensors.index.json": _teacher_index(model, manifest),
    }
    if model._store is not None:
        try:
            texts[PROCESSOR_FILE] = model._store.repository.fetch(PROCESSOR_FILE).read_text(encoding="utf-8")
            texts[f"teacher/{PROCESSOR_FILE}"] = texts[PROCESSOR_FILE]
        except FetchError as error:
            # Whether it has one cannot be known now; that must not keep the weights from being saved.
            logger.warning("saved without %s: %s", PROCESSOR_FILE, error)
        except RepositoryError:
            pass  # It has none, and neither will the new one.
    for source in sorted(Path(__file__).parent.glob("*.py")):
        if source.name != "__init__.py":
            texts[source.name] = source.read_text(encoding="utf-8")
    return texts


def write_metrics(directory: str | os.PathLike[str], metrics: Mapping[int, list[Metric]]) -> Manifest:
    """Enter what was measured at each stage into the manifest of a saved repository.

    Args:
        directory: The repository's folder.
        metrics: Metrics by stage; other stages keep theirs.

    Returns:
        The new manifest.

    Raises:
        RepositoryError: If it is no PWL repository.
        ValueError: If a stage does not exist.
    """
    manifest = Repository.open(directory).manifest()
    for stage in metrics:
        Sources.prefix(stage, manifest.num_stages)
    manifest = manifest.with_metrics({stage: tuple(found) for stage, found in metrics.items()})
    with _writing(Path(directory, MANIFEST_FILE)):
        write_text(Path(directory, MANIFEST_FILE), manifest.to_json())
    return manifest


def write_tensors(target: Path, path: str, tensors: Tensors, parameters: int) -> FileEntry:
    """Write a safetensors file beside its place, move it into it, and describe it."""
    with _writing(target), beside(target) as temporary:
        # safetensors makes files that only their owner may read; a repository is like any other file.
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)
        size, digest = temporary.stat().st_size, sha256_of(temporary)
    return FileEntry(path=path, bytes=size, sha256=digest, parameters=parameters)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Say which file could not be written, and why."""
    try:
        yield
    except PWLError:
        raise
    except (OSError, SafetensorError) as error:
        # safetensors keeps the system's number in its text only.
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else found and int(found[1])
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "the disk is full; make room and save again"
        elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "the folder may not be written to; save elsewhere"
        else:
            advice = "save again, or elsewhere"
        raise SaveError(f"{target} could not be written: {advice} ({type(error).__name__}: {error})") from error


class _Planner:
    def __init__(self, model: PWLPreTrainedModel, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.state_dict = state_dict
        self.store: WeightStore | None = model._store
        self.resident = model._resident()
        floating = {t.dtype for piece in self.resident for t in self._own(piece).values() if t.is_floating_point()}
        if len(floating) != 1:
            raise ValueError(
                f"a PWL repository has one dtype, the model has {', '.join(sorted(map(str, floating)))}: cast it first"
            )
        self.dtype = floating.pop()

    def plan(self) -> list[PlannedFile]:
        groups: dict[str, list[Piece]] = {}
        for piece in sorted(self.model._all_pieces()):
            groups.setdefault(file_of(piece, self.model.num_stages), []).append(piece)
        planned = [self._plan_pieces(path, pieces) for path, pieces in groups.items()]
        stored = self.store.manifest.masks if self.store is not None else ()
        masks = {str(mask) for mask in stored} - self.model._discarded | self.model.statistics.keys()
        return planned + [self._plan_statistics(Sources(mask)) for mask in sorted(masks)]

    def _plan_pieces(self, path: str, pieces: list[Piece]) -> PlannedFile:
        parameters = sum(self._count(piece) for piece in pieces)
        entry = None if self.state_dict else self._same_dtype_entry(path)
        if entry is not None and self._is_unchanged(pieces):
            return PlannedFile(path, parameters, entry, None)
        return PlannedFile(path, parameters, None, lambda: self._gather(pieces))

    def _is_unchanged(self, pieces: list[Piece]) -> bool:
        resident = [piece for piece in pieces if piece in self.resident]
        try:
            return all(self.model._is_unchanged(piece) for piece in resident)
        except (RepositoryError, OSError):
            # The source is gone or was written over; what is in memory needs no source.
            if len(resident) < len(pieces):
                raise
            return False

    def _plan_statistics(self, mask: Sources) -> PlannedFile:
        path, own = statistics_file(mask), self.model.statistics.get(mask.mask)
        entry = self._same_dtype_entry(path)
        stored = None
        if self.store is not None and (own is not None or entry is None):
            try:
                stored = self.store.statistics(mask)
            except (RepositoryError, OSError):
                if own is None:
                    raise
        same = own is None or (stored is not None and all(torch.equal(t.cpu(), stored[n]) for n, t in own.items()))
        if entry is not None and same:
            return PlannedFile(path, 0, entry, None)
        tensors = own if own is not None else stored
        if tensors is None:
            raise RepositoryError(f"the statistics of {mask} are neither in memory nor in a repository")
        names = statistics_names(mask, self.model._blueprints)
        return PlannedFile(path, 0, None, lambda: {d: tensors[n].cpu().to(self.dtype) for d, n in names.items()})

    def _same_dtype_entry(self, path: str) -> FileEntry | None:
        if self.store is None or self.store.dtype != self.dtype:
            return None
        return self.store.manifest.get(path)

    def _gather(self, pieces: list[Piece]) -> Tensors:
        tensors: Tensors = {}
        for piece in pieces:
            if piece in self.resident:
                found = self._own(piece)
            elif self.store is not None:
                found = self.store.piece(piece)
            else:
                raise RepositoryError(f"{piece} is neither in memory nor in a repository")
            for name, tensor in found.items():
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                tensors[self._name_in_file(piece, name)] = tensor.detach().to("cpu", dtype)
        return tensors

    def _own(self, piece: Piece) -> Tensors:
        prefix = f"{piece.kind}." if piece.kind in ("teacher", "student") else f"{piece.kind}s.{piece.number}."
        tensors = self.model._tensors(piece)
        return {name: self.state_dict.get(prefix + name, tensor) for name, tensor in tensors.items()}

    def _name_in_file(self, piece: Piece, name: str) -> str:
        if piece.kind == "teacher" or piece.kind == "student":
            spec = self.model._blueprints[piece.kind].specs(piece.number)[name]
            return (STUDENT_PREFIX if piece.kind == "student" else "") + spec.checkpoint_name
        return name

    def _count(self, piece: Piece) -> int:
        if piece.kind == "teacher" or piece.kind == "student":
            specs = self.model._blueprints[piece.kind].specs(piece.number).values()
            return sum(torch.Size(spec.shape).numel() for spec in specs if spec.is_parameter)
        with torch.device("meta"):
            converter = self.model._make_converter(piece)
        return sum(p.numel() for p in converter.parameters())


def _saved_config(model: PWLPreTrainedModel, manifest: Manifest) -> PWLConfig:
    config: PWLConfig = copy.deepcopy(model.config)
    config.architectures = ["PWLForImageClassification"]
    config.fingerprint = manifest.fingerprint
    config.auto_map = {
        "AutoConfig": "configuration_pwl.PWLConfig",
        "AutoModelForImageClassification": "modeling_pwl.PWLForImageClassification",
    }
    for role in ("teacher", "student"):
        network, plan = getattr(config, f"{role}_config"), model._blueprints[role]
        network.architectures = network.architectures or [plan.family.model_class().__name__]
        if plan.family.auto_map:
            network.auto_map = dict(plan.family.auto_map)
        network.id2label, network.label2id = copy.copy(config.id2label), copy.copy(config.label2id)
        network.problem_type = config.problem_type
    for part in (config, config.teacher_config, config.student_config):
        part.dtype = manifest.dtype
    return config


def _teacher_index(model: PWLPreTrainedModel, manifest: Manifest) -> str:
    plan, itemsize = model._blueprints["teacher"], getattr(torch, manifest.dtype).itemsize
    weight_map: dict[str, str] = {}
    total_size = total_parameters = 0
    for block in range(1, model.num_stages + 1):
        for spec in plan.specs(block).values():
            weight_map[spec.checkpoint_name] = Path(teacher_shard(block, model.num_stages)).name
            numel = torch.Size(spec.shape).numel()
            total_size += numel * (itemsize if spec.is_floating else torch.int64.itemsize)
            total_parameters += numel if spec.is_parameter else 0
    metadata: dict[str, Any] = {"total_parameters": total_parameters, "total_size": total_size}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"


__all__ = [
    "PlannedFile",
    "new_manifest",
    "plan_files",
    "save_repository",
    "text_files",
    "write_metrics",
    "write_tensors",
]
