"""Writing a repository: which files it has, which are copied unchanged, and how they come into place.

The plan is made first, without writing or downloading: for each weight file either the entry it is copied
from, or the tensors it is made of. Publishing uses the same plan.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging

from ..configuration_pwl import PWLConfig
from ..errors import FetchError, MissingFileError, RepositoryError, SaveError
from ..publishing.remote_code import auto_map, chosen_code, code_of, code_paths, network_auto_map, set_auto_map
from ..repository.files import copy_file, sha256_of, temporary_name, write_text
from ..repository.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    Metric,
    file_of,
    statistics_file,
    teacher_shard,
)
from ..repository.output_folder import (
    PROCESSOR_FILE,
    TEACHER_INDEX_FILE,
    FileState,
    exclusive_folder,
    saving_into,
    states,
    text_paths,
    writing,
)
from ..repository.source import Repository
from ..sources import Piece, Sources
from .structure import has_accelerate_hooks
from .weights import STUDENT_PREFIX, Tensors, WeightStore, statistics_names

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

    from ..staged_model import StagedModel

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


def plan_files(model: StagedModel, state_dict: Mapping[str, torch.Tensor] | None = None) -> list[PlannedFile]:
    """The weight files of a model's repository, from whatever stage it is at.

    Args:
        model: The model.
        state_dict: Tensors to take in place of the model's own, by full name.

    Raises:
        ValueError: If the resident tensors are of several dtypes.
        RepositoryError: If a file that must be read is not what the manifest says.
        SaveError: If the model holds what the repository would not, or its values are elsewhere.
    """
    return _Planner(model, state_dict or {}).plan()


def check_savable(model: StagedModel) -> None:
    """Refuse a model that holds what its repository would not: an adapter, a quantised layer, another head.

    Raises:
        SaveError: With the first tensor or module of that kind.
    """
    difference = next(_differences(model), None)
    if difference is not None:
        raise SaveError(
            f"the model is not what its config describes, and would not be saved whole: {difference}; merge an adapter "
            "first (merge_and_unload) or save it alone (save_pretrained of the PeftModel), save before quantising, and "
            "take back what else was put in, or changed in the config"
        )


def _differences(model: StagedModel) -> Iterator[str]:
    for role, plan in model._blueprints.items():
        if role in model._modules and (found := plan.difference(model._network(role))) is not None:
            yield f"of the {role}, {found}"
        elif plan.config.num_labels != model.config.num_labels:
            yield f"config.num_labels is {model.config.num_labels}, the {role}'s {plan.config.num_labels}"
    for piece in sorted(model._resident()):
        if piece.kind in ("encoder", "decoder") and (found := model._difference(piece)) is not None:
            yield f"of {piece}, {found}"
    own = ("teacher.", "student.", "encoders.", "decoders.")
    for name in model.state_dict():
        if not name.startswith(own):
            yield f"it holds the tensor {name!r}, which is none of its networks'"


def save_repository(
    model: StagedModel,
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor] | None = None,
    place: Callable[[PlannedFile, Path], FileEntry | None] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    remote_code: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a model's repository into a folder; see `PWLForImageClassification.save_pretrained`.

    Args:
        model: The model.
        directory: The folder.
        state_dict: Tensors to take in place of the model's own, by full name.
        place: Asked first for each weight file: puts it into its place by itself and says what it is, or returns None.
        texts: Further text files by path, such as those of an image processor (see `processor_files`).
        remote_code: What code it carries (see `remote_code.chosen_code`).
        overwrite: Write over files that are not a repository's.

    Raises:
        ValueError: For a `remote_code` that cannot be.
        OverwriteError: If files would be written over that are not the repository's own; nothing was written.
        RepositoryError: If a file to be copied is not what the manifest says, or is a link out of its folder.
        SaveError: If a file cannot be written, or another save changes the folder meanwhile.
    """
    if os.path.isfile(directory):
        raise ValueError(f"save_directory must be a folder, {os.fspath(directory)!r} is a file")
    root, store = Path(directory), model._store
    # 1. What is to be written, and all that it is copied from: nothing is touched before it is there and checked.
    code = code_paths(model.config, chosen_code(model.config, remote_code))
    planned_files = plan_files(model, state_dict)
    texts = {**stored_processor(model), **(texts or {})}
    copied = [planned.path for planned in planned_files if planned.entry is not None]
    if store is not None:
        store.repository.check_links(copied)
        if place is None:
            store.prepare(copied)
    paths = {planned.path for planned in planned_files} | text_paths() | texts.keys() | code
    # 2. The files, each whole, the manifest last.
    with saving_into(root, paths, inputs=_inputs(model), overwrite=overwrite) as before:
        entries: list[FileEntry] = []
        placed: dict[str, FileState] = {}
        for planned in planned_files:
            target = root / planned.path
            entry = place(planned, target) if place is not None else None
            if entry is None and planned.entry is not None and store is not None:
                entry, local = planned.entry, store.local(planned.path)
                with writing(target):
                    copy_file(local, target, entry.sha256)
            elif entry is None and planned.tensors is not None:
                entry = write_tensors(target, planned.path, planned.tensors(), planned.parameters)
            if entry is not None:
                entries.append(entry)
            placed |= states(root, [planned.path])
        manifest = new_manifest(model, entries, before.manifest)
        for path, text in {
            **text_files(model, manifest, remote_code),
            **texts,
            MANIFEST_FILE: manifest.to_json(),
        }.items():
            with writing(root / path):
                write_text(root / path, text)
            placed |= states(root, [path])
        # 3. None of them may be another's.
        _check_undisturbed(root, placed)
    if store is not None and store.repository.commit is None:
        own = Path(store.repository.name, store.repository.subfolder)
        if own.exists() and own.samefile(root):
            # The files under the model are these now.
            model._store = WeightStore(store.repository, manifest, model._blueprints)
            model.config.fingerprint = manifest.fingerprint
    return manifest


def processor_files(processor: BaseImageProcessor) -> dict[str, str]:
    """The text files that an image processor is saved as, for a repository and for its teacher's folder."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        found = {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}
    return found | {f"teacher/{name}": text for name, text in found.items()}


def _inputs(model: StagedModel) -> list[str]:
    """The folders that the networks of a model came from, unless it came from a repository itself."""
    if model._store is not None:
        return []
    names = [getattr(network, "name_or_path", "") for network in (model.teacher, model.student)]
    return [*model._joined_from, *(os.path.abspath(name) for name in names if name)]


def _check_undisturbed(root: Path, placed: Mapping[str, FileState]) -> None:
    """Where folders cannot be locked, another save may have come between: then a file is not the one put there."""
    now = states(root, placed)
    for path, state in placed.items():
        if now.get(path) != state:
            raise SaveError(
                f"{root / path} was changed by another process while {root} was being saved into: the folder may hold "
                "files of two saves, which are refused on loading; save again"
            )


def new_manifest(model: StagedModel, entries: list[FileEntry], before: Manifest | None = None) -> Manifest:
    """The manifest of these files; metrics are kept only if every weight is the one they were measured on.

    Args:
        model: The model.
        entries: Its weight files.
        before: The manifest that this one replaces: what was measured since the model was loaded is there.
    """
    manifest = Manifest.build(str(model.dtype).removeprefix("torch."), model.num_stages, entries, {})
    for known in (before, model._store.manifest if model._store is not None else None):
        if known is not None and known.fingerprint == manifest.fingerprint and any(s.metrics for s in known.stages):
            return manifest.with_metrics({stage.stage: stage.metrics for stage in known.stages})
    return manifest


def text_files(model: StagedModel, manifest: Manifest, remote_code: str | None = None) -> dict[str, str]:
    """Everything besides weights, manifest and image processor: configs, the teacher's index, code if there is any."""
    chosen = chosen_code(model.config, remote_code)
    config = _saved_config(model, manifest, chosen)
    texts = {
        "config.json": config.to_json_string(),
        "teacher/config.json": config.teacher_config.to_json_string(),
        TEACHER_INDEX_FILE: _teacher_index(model, manifest),
    }
    return texts | code_of(config, chosen)


def stored_processor(model: StagedModel) -> dict[str, str]:
    """The image processor of the repository that a model came from, by path, compared with what the Hub has.

    Raises:
        RepositoryError: If it is damaged each time, or a link out of its folder.
    """
    if model._store is None:
        return {}
    repository = model._store.repository
    repository.check_links([PROCESSOR_FILE])
    try:
        text = repository.fetch_text(PROCESSOR_FILE).decode("utf-8")
    except FetchError as error:
        # Whether it has one cannot be known now; that must not keep the weights from being saved.
        logger.warning("saved without %s: %s", PROCESSOR_FILE, error)
        return {}
    except MissingFileError:
        return {}  # Neither will the new one.
    return {PROCESSOR_FILE: text, f"teacher/{PROCESSOR_FILE}": text}


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
    repository, target = Repository.open(directory), Path(directory, MANIFEST_FILE)
    with writing(target), exclusive_folder(Path(directory)):
        manifest = repository.manifest()
        for stage in metrics:
            Sources.prefix(stage, manifest.num_stages)
        manifest = manifest.with_metrics({stage: tuple(found) for stage, found in metrics.items()})
        write_text(target, manifest.to_json())
    return manifest


def write_tensors(target: Path, path: str, tensors: Tensors, parameters: int) -> FileEntry:
    """Write a safetensors file next to its place, move it there, and describe it.

    Args:
        target: Where it goes.
        path: Its path in the repository.
        tensors: Its tensors, by name.
        parameters: How many parameters it holds.

    Raises:
        SaveError: If it cannot be written.
    """
    scratch = temporary_name(target)
    temporary = scratch / target.name
    with writing(target):
        # In a folder of its own: safetensors makes a temporary file next to the one that it is given, under a name that
        # does not tell whose it is. What a killed process leaves can so be told from what another one writes.
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            # safetensors makes files that only their owner may read; a repository is like any other file.
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata={"format": "pt"})
            temporary.chmod(mode)
            size, digest = temporary.stat().st_size, sha256_of(temporary)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return FileEntry(path=path, bytes=size, sha256=digest, parameters=parameters)


class _Planner:
    def __init__(self, model: StagedModel, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self.state_dict = state_dict
        self.store: WeightStore | None = model._store
        check_savable(model)
        self.resident = model._resident()
        self._check_given()
        floating = {t.dtype for piece in self.resident for t in self._own(piece).values() if t.is_floating_point()}
        if len(floating) != 1:
            raise ValueError(
                f"a PWL repository has one dtype, the model has {', '.join(sorted(map(str, floating)))}: cast it first"
            )
        self.dtype = floating.pop()

    def _check_given(self) -> None:
        """Refuse what was given to be saved and is not the model's: it would be left out, the model's own saved."""
        known = {
            f"{piece.prefix}{name}": t for piece in self.resident for name, t in self.model._tensors(piece).items()
        }
        for name, tensor in self.state_dict.items():
            if name not in known:
                raise ValueError(f"state_dict has {name!r}, which is no tensor of what is resident of the model")
            if tensor.shape != known[name].shape:
                raise ValueError(
                    f"state_dict has {name!r} of shape {list(tensor.shape)}, the model's is {list(known[name].shape)}"
                )
        for name in sorted(known.keys() - self.state_dict.keys()):
            if known[name].is_meta:
                how = (
                    "is kept elsewhere by accelerate's hooks: call accelerate.hooks.remove_hook_from_submodules(model)"
                )
                if not has_accelerate_hooks(self.model):
                    how = "has no values, it is on the meta device: load the model on another one"
                raise SaveError(f"{name} cannot be saved: it {how} first")

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
        tensors = self.model._tensors(piece)
        return {name: self.state_dict.get(piece.prefix + name, tensor) for name, tensor in tensors.items()}

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


def _saved_config(model: StagedModel, manifest: Manifest, remote_code: str) -> PWLConfig:
    config: PWLConfig = copy.deepcopy(model.config)
    config.architectures = ["PWLForImageClassification"]
    config.fingerprint = manifest.fingerprint
    set_auto_map(config, auto_map(remote_code))
    for role in ("teacher", "student"):
        network, plan = getattr(config, f"{role}_config"), model._blueprints[role]
        network.architectures = network.architectures or [plan.family.model_class().__name__]
        set_auto_map(network, network_auto_map(network.model_type))
        network.id2label, network.label2id = copy.copy(config.id2label), copy.copy(config.label2id)
        network.problem_type = config.problem_type
    for part in (config, config.teacher_config, config.student_config):
        part.dtype = manifest.dtype
    return config


def _teacher_index(model: StagedModel, manifest: Manifest) -> str:
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
    "check_savable",
    "new_manifest",
    "plan_files",
    "processor_files",
    "save_repository",
    "stored_processor",
    "text_files",
    "write_metrics",
    "write_tensors",
]
