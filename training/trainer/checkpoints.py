"""Checkpoints: whole PWL repositories, the teacher's shards on disk once, and restored to the last bit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from pwl_hf.modeling import Manifest, PWLConfig, PWLPreTrainedModel, RepositoryError
from pwl_hf.modeling.loading import read_config
from pwl_hf.modeling.parts.planning import PlannedFile
from pwl_hf.modeling.parts.weights import WeightStore, same_bits
from pwl_hf.modeling.publishing.saving import save_repository
from pwl_hf.modeling.repository.files import atomic_write, leads_out
from pwl_hf.modeling.repository.manifest import FileEntry
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.repository.verification import check_file
from pwl_hf.modeling.schedule import Schedule

logger = logging.get_logger(__name__)

# What a saved config has besides the network: it may differ between two saves of one model.
_INCIDENTAL = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "auto_map",
    "base_model",
    "dtype",
    "fingerprint",
    "transformers_version",
    "use_cache",
}


class CheckpointWriter:
    """Saves one model again and again; the frozen teacher's shards are hard links to the copy written first.

    A shard is linked only if that copy holds what the teacher holds now, byte for byte; where the file system has no
    links, it is copied. A link outlives the folder that it was made from, so old checkpoints may be deleted.
    """

    def __init__(self) -> None:
        # Path in the repository -> the folder that a copy is in, and its entry.
        self._copies: dict[str, tuple[Path, FileEntry]] = {}

    def write(
        self,
        model: PWLPreTrainedModel,
        directory: str | os.PathLike[str],
        *,
        texts: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> Manifest:
        """Write a model's repository into a folder.

        What was measured on the very same weights stays in the manifest.

        Args:
            model: The model.
            directory: The folder.
            texts: Further text files by path, such as those of an image processor.
            overwrite: Write over files that are not a repository's.

        Raises:
            OverwriteError: If files would be written over that are not a repository's; nothing was written.
            SaveError: If a file cannot be written.
        """
        with model.parts.lock:
            manifest = save_repository(
                model.parts,
                Schedule.of(model.schedule),
                directory,
                place=self._link,
                texts=texts,
                overwrite=overwrite,
            )
        self.adopt(directory, manifest)
        return manifest

    def adopt(self, directory: str | os.PathLike[str], manifest: Manifest) -> None:
        """Link to the shards of a saved repository from now on."""
        for entry in manifest.files:
            if entry.path.startswith("teacher/"):
                self._copies[entry.path] = Path(directory).absolute(), entry

    def _link(self, planned: PlannedFile, target: Path) -> FileEntry | None:
        folder, entry = self._copies.get(planned.path, (None, None))
        if folder is None or entry is None:
            return None
        copy = folder / planned.path
        # Of a file that lies elsewhere, a link would hold what is not this folder's.
        if not copy.is_file() or copy.is_symlink() or leads_out(folder, planned.path):
            return None
        if copy.stat().st_size != entry.bytes:
            return None
        if planned.entry is not None:
            if planned.entry.sha256 != entry.sha256 or not _is_whole_file(copy, entry):
                return None
        elif planned.tensors is None or not _holds(copy, planned.tensors().tensors):
            return None
        if target.exists() and copy.samefile(target):
            return entry
        try:
            with atomic_write(target) as temporary:
                os.link(copy, temporary)
        except OSError as error:
            logger.debug("%s is copied, not linked to %s: %s", target, copy, error)
            return None
        return entry


@torch.no_grad()
def restore(model: PWLPreTrainedModel, directory: str | os.PathLike[str], *, teacher_too: bool = False) -> Manifest:
    """Take over a saved repository's weights, in place: student, converters, and BatchNorm statistics of all masks.

    Everything is checked before anything is changed.

    Args:
        model: A model with everything resident, of the same networks and with the same teacher.
        directory: The repository's folder.
        teacher_too: Take over the teacher as well, where training changed it.

    Returns:
        The repository's manifest.

    Raises:
        RepositoryError: If the folder is not a whole PWL repository.
        ValueError: If it is of another model, with the first difference.
    """
    if not os.path.isdir(directory):
        raise RepositoryError(f"there is no checkpoint {os.fspath(directory)!r}: each process must be able to read it")
    repository = Repository.open(directory)
    manifest = repository.manifest()
    difference = _difference(read_config(repository, PWLConfig, {}).to_dict(), model.config.to_dict())
    if difference is not None:
        raise ValueError(f"{repository} is a checkpoint of another model: {difference}")
    parts = model.parts
    store = WeightStore(repository, manifest, parts.inventory)
    if store.dtype != model.dtype:
        raise ValueError(
            f"{repository} is a checkpoint of another model: dtype is {store.dtype} there, {model.dtype} here"
        )
    store.prepare([entry.path for entry in manifest.files])
    if not teacher_too:
        for part in parts:
            if part.of_teacher and not part.is_low and not _same(part.tensors(), store.read(part)):
                raise ValueError(
                    f"{repository} is a checkpoint of another model: its {part} has other weights; give the teacher "
                    "that it was trained with"
                )
    model.take_values(store, teacher_too=teacher_too)
    return manifest


def check_resumable(directory: str | os.PathLike[str]) -> None:
    """Refuse a folder that a run cannot be continued from.

    Raises:
        ValueError: If something is missing, with what to do.
    """
    if not _is_whole(Path(directory)):
        raise ValueError(
            f"{os.fspath(directory)!r} is no whole checkpoint: it has no readable {TRAINER_STATE_NAME}, which is "
            "written last; resume from another one, or train the model in it further as a new run"
        )
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
        if not Path(directory, name).is_file():
            raise ValueError(
                f"{os.fspath(directory)!r} has no {name}, as with save_only_model: the run cannot be continued from "
                "it; train the model in it further as a new run"
            )


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The last whole checkpoint in a folder; one that a killed run left half written is passed over.

    Returns:
        Its path, or None if there is none.
    """
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    ]
    for _, path in sorted(found, reverse=True):
        if _is_whole(path):
            return str(path)
        logger.warning("%s is passed over: it was not written to the end", path)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads(Path(checkpoint, TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _is_whole_file(file: Path, entry: FileEntry) -> bool:
    try:
        check_file(file, entry, str(file.parent))
    except RepositoryError as error:  # A new copy is written.
        logger.debug("%s is not linked to: %s", file, error)
        return False
    return True


def _holds(file: Path, tensors: Mapping[str, torch.Tensor]) -> bool:
    try:
        return _same(tensors, load_file(file))
    except (OSError, SafetensorError) as error:  # A new copy is written.
        logger.debug("%s is not linked to: %s", file, error)
        return False


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are one, bit for bit."""
    return one.keys() == other.keys() and all(same_bits(tensor, other[name]) for name, tensor in one.items())


def _difference(stored: Mapping[str, Any], own: Mapping[str, Any], where: str = "") -> str | None:
    """The first difference of two configs that makes two models of them."""
    for key in sorted((stored.keys() | own.keys()) - _INCIDENTAL, key=str):
        there, here = stored.get(key), own.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            found = _difference(there, here, f"{where}{key}.")
            if found is not None:
                return found
        elif there != here:
            return f"{where}{key} is {there!r:.100} there, {here!r:.100} here"
    return None
