"""Writing a repository into a folder: how its files come into place, and the texts among them."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging

from ..configuration_pwl import PWLConfig
from ..errors import RepositoryError, SaveError
from ..parts.parts import Parts
from ..parts.planning import PlannedFile, plan_files
from ..repository.files import copy_file, sha256_of, temporary_name, write_bytes, write_text
from ..repository.layout import MANIFEST_FILE, tier_block
from ..repository.manifest import FileEntry, ListedFile, Manifest, Metric, check_attachment, entry_of
from ..repository.output_folder import (
    TEACHER_INDEX_FILE,
    FileState,
    check_output,
    exclusive_folder,
    saving_into,
    states,
    text_paths,
    writing,
)
from ..repository.source import Repository
from ..schedule import Schedule
from .processing import stored_processing
from .remote_code import auto_map, chosen_code, code_of, code_paths, network_auto_map, set_auto_map

logger = logging.get_logger(__name__)


def save_repository(
    parts: Parts,
    schedule: Schedule,
    directory: str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor] | None = None,
    place: Callable[[PlannedFile, Path], FileEntry | None] | None = None,
    *,
    texts: Mapping[str, str] | None = None,
    remote_code: str | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a model's repository into a folder; see `PWLPreTrainedModel.save_pretrained`.

    Args:
        parts: The model's parts.
        schedule: The masks of its stages.
        directory: The folder.
        state_dict: Tensors to take in place of the model's own, by full name.
        place: Asked first for each weight file: puts it into its place by itself and says what it is, or returns None.
        texts: Further text files by path, such as those of a tokenizer (see `processing_files`).
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
    root, store = Path(directory), parts.store
    # 1. What is to be written, and all that it is copied from: nothing is touched before it is there and checked.
    code = code_paths(parts.config, chosen_code(parts.config, remote_code))
    plan = plan_files(parts, state_dict)
    planned_files = plan.files
    attached = fetch_attachments(parts, planned_files, schedule)
    texts = {**stored_processing(parts), **(texts or {})}
    copied = [planned.path for planned in planned_files if planned.entry is not None]
    if store is not None:
        store.repository.check_links(copied)
        if place is None:
            store.prepare(copied)
    paths = {planned.path for planned in planned_files} | text_paths() | texts.keys() | code
    paths |= {attachment.path for attachment in attached}
    # 2. The files, each whole, the manifest last.
    with saving_into(root, paths, inputs=_inputs(parts), overwrite=overwrite) as before:
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
                entry = write_tensors(target, planned)
            if entry is not None:
                entries.append(entry)
            placed |= states(root, [planned.path])
        for attachment, local in attached.items():
            with writing(root / attachment.path):
                copy_file(local, root / attachment.path, attachment.sha256)
            placed |= states(root, [attachment.path])
        manifest = new_manifest(parts, schedule, entries, attached, before.manifest, tier=plan.tier)
        for path, text in {
            **text_files(parts, manifest, remote_code),
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
            parts.saved_over(manifest)
    return manifest


def fetch_attachments(parts: Parts, planned: Collection[PlannedFile], schedule: Schedule) -> dict[ListedFile, Path]:
    """The attachments of the repository that a model came from, by their checked local files.

    Args:
        parts: The model's parts.
        planned: The weight files to be: attachments stay with weights that are the same, every one, whatever the tier.
        schedule: The stages to be: attachments of others are left out, with a warning.

    Raises:
        RepositoryError: If one is not what the manifest says, or is a link out of its folder.
    """
    kept = {file.entry for file in planned if tier_block(file.path) is None}
    if parts.store is None or kept != {entry for entry in parts.store.manifest.files if entry.tier_block is None}:
        return {}
    manifest, repository = parts.store.manifest, parts.store.repository
    if repository.commit is None:
        # A folder may have got others, or lost them, since the model was loaded from it.
        with suppress(RepositoryError):
            now = repository.manifest()
            manifest = now if now.fingerprint == manifest.fingerprint else manifest
    attachments = manifest.attachments
    if attachments and manifest.schedule.without_tier() != schedule.without_tier():
        logger.warning(
            "saved without the graphs of %s, whose stages are others (%s): export it again",
            repository,
            " ".join(map(str, manifest.schedule)),
        )
        return {}
    repository.check_links([attachment.path for attachment in attachments])
    files = repository.fetch_verified(attachments)
    return {attachment: files[attachment.path] for attachment in attachments}


def _inputs(parts: Parts) -> list[str]:
    """The folders that the networks of a model came from, unless it came from a repository itself."""
    if parts.store is not None:
        return []
    names = [getattr(parts.networks.of(role), "name_or_path", "") for role in parts.networks.blueprints]
    return [*parts.joined_from, *(os.path.abspath(name) for name in names if name)]


def _check_undisturbed(root: Path, placed: Mapping[str, FileState]) -> None:
    """Where folders cannot be locked, another save may have come between: then a file is not the one put there."""
    now = states(root, placed)
    for path, state in placed.items():
        if now.get(path) != state:
            raise SaveError(
                f"{root / path} was changed by another process while {root} was being saved into: the folder may hold "
                "files of two saves, which are refused on loading; save again"
            )


def new_manifest(
    parts: Parts,
    schedule: Schedule,
    entries: list[FileEntry],
    attachments: Collection[ListedFile] = (),
    before: Manifest | None = None,
    *,
    tier: int | None = None,
) -> Manifest:
    """The manifest of these files; metrics are kept only if every weight is the one they were measured on.

    Args:
        parts: The model's parts.
        schedule: The masks of its stages.
        entries: Its weight files.
        attachments: Files that belong to them.
        before: The manifest that this one replaces: what was measured since the model was loaded is there.
        tier: The bits of the teacher's low precision among the files; without it no stage has such blocks.
    """
    dtype = str(parts.networks.model.dtype).removeprefix("torch.")
    schedule = schedule if tier is not None else schedule.without_tier()
    manifest = Manifest.build(dtype, schedule, entries, attachments=attachments, tier=tier)
    for known in (before, parts.store.manifest if parts.store is not None else None):
        if known is not None and known.fingerprint == manifest.fingerprint and any(s.metrics for s in known.stages):
            return manifest.with_metrics_of(known)
    return manifest


def text_files(parts: Parts, manifest: Manifest, remote_code: str | None = None) -> dict[str, str]:
    """Everything besides weights, manifest and tokenizer or processor: configs, the teacher's index, code if any."""
    chosen = chosen_code(parts.config, remote_code)
    config = _saved_config(parts, manifest, chosen)
    texts = {
        "config.json": config.to_json_string(),
        "teacher/config.json": config.teacher_config.to_json_string(),
        TEACHER_INDEX_FILE: _teacher_index(parts, manifest),
    }
    return texts | code_of(config, chosen)


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
            manifest.schedule.mask(stage)
        manifest = manifest.with_metrics({stage: tuple(found) for stage, found in metrics.items()})
        write_text(target, manifest.to_json())
    return manifest


def write_schedule(directory: str | os.PathLike[str], schedule: Schedule, made_for: Manifest | None = None) -> Manifest:
    """Give a saved repository other stages; its weight files stay as they are.

    What was measured stays with its mask. Attachments are removed: they are of the stages that there were.

    Args:
        directory: The repository's folder.
        schedule: The mask of each stage.
        made_for: The manifest of the weights that it was chosen for; by default those that are there.

    Returns:
        The new manifest.

    Raises:
        RepositoryError: If it is no PWL repository, or a stage needs what it does not hold.
        SaveError: If a file cannot be written, or the weights are others by now.
    """
    root = Path(directory)
    with exclusive_folder(root):
        before = Repository.open(root).manifest()
        _check_made_for(root, before, made_for)
        manifest = before.with_schedule(schedule)
        with writing(root / MANIFEST_FILE):
            write_text(root / MANIFEST_FILE, manifest.to_json())
        _remove_attachments(root, before, manifest)
    return manifest


def _check_made_for(root: Path, found: Manifest, made_for: Manifest | None) -> None:
    if made_for is not None and found.fingerprint != made_for.fingerprint:
        raise SaveError(f"nothing was written: {root} got other weights meanwhile; do it again for these")


def _remove_attachments(root: Path, before: Manifest, after: Manifest) -> None:
    """Remove what a manifest that is there no more attached, unless the new one does."""
    for attachment in before.attachments:
        if attachment.path not in after.paths:
            (root / attachment.path).unlink(missing_ok=True)


def write_attachments(
    directory: str | os.PathLike[str], files: Mapping[str, bytes], made_for: Manifest | None = None
) -> Manifest:
    """Attach files to a saved repository, in place of those that it has.

    They belong to the weights as they are: a save that changes one of these drops them.

    Args:
        directory: The repository's folder.
        files: Their contents by path: `.onnx`, and `.json` in a folder of their own, such as `onnx/`.
        made_for: The manifest of the weights that they were made for; by default those that are there.

    Returns:
        The new manifest.

    Raises:
        RepositoryError: If it is no PWL repository, or a path cannot be one of an attachment.
        OverwriteError: If there are files at these paths that are no attachments.
        SaveError: If a file cannot be written, or the weights are others by now.
    """
    root = Path(directory)
    if not root.is_dir():
        raise RepositoryError(f"{root} is no folder: save the model there first")
    for path in files:
        check_attachment(path)
    with exclusive_folder(root):
        before = Repository.open(directory).manifest()
        _check_made_for(root, before, made_for)
        known = {attachment.path for attachment in before.attachments}
        advice = "move them away, or attach under other names"
        # What a killed one left is no other's: the same is written again.
        foreign = {path for path, data in files.items() if path not in known and not _holds(root / path, data)}
        check_output(root, foreign, advice=advice)
        attachments = [entry_of(path, data) for path, data in files.items()]
        manifest = replace(before, attachments=tuple(attachments))
        for path, data in files.items():
            with writing(root / path):
                write_bytes(root / path, data)
        with writing(root / MANIFEST_FILE):
            write_text(root / MANIFEST_FILE, manifest.to_json())
        _remove_attachments(root, before, manifest)
    return manifest


def _holds(local: Path, data: bytes) -> bool:
    return local.is_file() and not local.is_symlink() and local.read_bytes() == data


def write_tensors(target: Path, planned: PlannedFile) -> FileEntry:
    """Write a planned safetensors file next to its place, move it there, and describe it.

    Args:
        target: Where it goes.
        planned: What it is made of.

    Raises:
        SaveError: If it cannot be written.
    """
    if planned.tensors is None:
        raise RuntimeError(f"{planned.path!r} was planned without contents")
    tensors, metadata = planned.tensors()
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
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=dict(metadata))
            temporary.chmod(mode)
            size, digest = temporary.stat().st_size, sha256_of(temporary)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return FileEntry(planned.path, size, digest, planned.parameters, planned.blocks, planned.student_blocks)


def _saved_config(parts: Parts, manifest: Manifest, remote_code: str) -> PWLConfig:
    config: PWLConfig = copy.deepcopy(parts.config)
    config.architectures = [type(parts.networks.model).__name__]
    config.fingerprint = manifest.fingerprint
    set_auto_map(config, auto_map(remote_code, config.task))
    for role, plan in parts.networks.blueprints.items():
        network = getattr(config, f"{role}_config")
        network.architectures = network.architectures or [plan.model_class.__name__]
        set_auto_map(network, network_auto_map(network.model_type))
        network.id2label, network.label2id = copy.copy(config.id2label), copy.copy(config.label2id)
        network.problem_type = config.problem_type
    for part in (config, config.teacher_config, config.student_config):
        part.dtype = manifest.dtype
    return config


def _teacher_index(parts: Parts, manifest: Manifest) -> str:
    itemsize = getattr(torch, manifest.dtype).itemsize
    weight_map: dict[str, str] = {}
    total_size = total_parameters = 0
    for part in parts.inventory.parts.values():
        if part.role != "teacher" or part.is_low:
            continue
        for spec in part.specs.values():
            weight_map[spec.checkpoint_name] = Path(part.file).name
            numel = torch.Size(spec.shape).numel()
            total_size += numel * (itemsize if spec.is_floating else torch.int64.itemsize)
            total_parameters += numel if spec.is_parameter else 0
    metadata: dict[str, Any] = {"total_parameters": total_parameters, "total_size": total_size}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
