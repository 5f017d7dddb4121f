"""What a save consists of, worked out before anything is written or downloaded.

For each weight file either the entry that it is a copy of, or the tensors that it is made of. Publishing uses the same
plan as saving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from transformers.utils import logging

from ..errors import RepositoryError, SaveError
from ..repository.layout import quantised_file, refinement_file, statistics_file, teacher_shard
from ..repository.manifest import FileEntry
from ..sources import PartId, Sources
from .part import Part, Tensors
from .parts import Parts
from .structure import has_accelerate_hooks
from .tier import split
from .weights import WeightStore, same_bits, statistics_names

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class PlannedFile:
    """A weight file to be.

    Args:
        path: Its path in the repository.
        parameters: How many parameters it holds.
        entry: The file of the model's own repository that it is a copy of, or None.
        tensors: Otherwise what it is made of, by name in the file.
        blocks: If it is of what the teacher's blocks share, those blocks.
        student_blocks: Blocks of the student that share it too.
    """

    path: str
    parameters: int
    entry: FileEntry | None
    tensors: Callable[[], FileContents] | None
    blocks: tuple[int, ...] = ()
    student_blocks: tuple[int, ...] = ()


class FileContents(NamedTuple):
    """What a weight file is made of.

    Args:
        tensors: Its tensors, by name in the file.
        metadata: What it says of itself: one text at most, for safetensors writes several in any order.
    """

    tensors: Tensors
    metadata: Mapping[str, str] = MappingProxyType({"format": "pt"})


@dataclass(frozen=True)
class Plan:
    """What a save consists of.

    Args:
        files: Its weight files.
        tier: The bits of the teacher's low precision among them; None without it.
    """

    files: list[PlannedFile]
    tier: int | None


def plan_files(parts: Parts, state_dict: Mapping[str, torch.Tensor] | None = None) -> Plan:
    """The weight files of a model's repository, from whatever stage it is at.

    Args:
        parts: The model's parts.
        state_dict: Tensors to take in place of the model's own, by full name.

    Raises:
        ValueError: If the resident tensors are of several dtypes.
        RepositoryError: If a file that must be read is not what the manifest says.
        SaveError: If the model holds what the repository would not, or its values are elsewhere.
    """
    return _Planner(parts, state_dict or {}).plan()


def check_savable(parts: Parts) -> None:
    """Refuse a model that holds what its repository would not: an adapter, a quantised layer, another head.

    Raises:
        SaveError: With the first tensor or module of that kind.
    """
    difference = next(_differences(parts), None)
    if difference is not None:
        raise SaveError(
            f"the model is not what its config describes, and would not be saved whole: {difference}; merge an adapter "
            "first (merge_and_unload) or save it alone (save_pretrained of the PeftModel), save before quantising, and "
            "take back what else was put in, or changed in the config"
        )


def _differences(parts: Parts) -> Iterator[str]:
    networks, config = parts.networks, parts.config
    try:
        config.validate_pwl()
    except ValueError as error:  # Of configs that were edited, or resized with their network.
        yield f"its config could not be loaded: {error}"
    if config.share_embedder != networks.shares_embedder:
        yield f"config.share_embedder is {config.share_embedder}, and it was made with {networks.shares_embedder}"
    for role, plan in networks.blueprints.items():
        if networks.has(role) and (found := plan.difference(networks.of(role))) is not None:
            yield f"of the {role}, {found}"
        elif plan.config.num_labels != config.num_labels:
            yield f"config.num_labels is {config.num_labels}, the {role}'s {plan.config.num_labels}"
    # What belongs to no network as a whole: converters, low precision, and what both share.
    for part in sorted(parts.resident()):
        if (part.role is None or part.is_low or part.student_blocks) and (found := part.difference()) is not None:
            yield f"of {part}, {found}"
    own = ("teacher.", "student.", "quantised.", "encoders.", "decoders.")
    for name in networks.model.state_dict():
        if not name.startswith(own):
            yield f"it holds the tensor {name!r}, which is none of its networks'"


class _Planner:
    def __init__(self, parts: Parts, state_dict: Mapping[str, torch.Tensor]) -> None:
        self.parts = parts
        self.state_dict = _under_first_names(state_dict, parts.networks.aliases)
        self.store: WeightStore | None = parts.store
        check_savable(parts)
        self.resident = parts.resident()
        self._check_given()
        self._check_low_precision()
        tensors = [tensor for part in self.resident for tensor in self._own(part).values()]
        floating = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if len(floating) != 1:
            raise ValueError(
                f"a PWL repository has one dtype, the model has {', '.join(sorted(map(str, floating)))}: cast it first"
            )
        self.dtype = floating.pop()

    def _check_given(self) -> None:
        """Refuse what was given to be saved and is not the model's: it would be left out, the model's own saved."""
        known = self.parts.tensors()
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
                if not has_accelerate_hooks(self.parts.networks.model):
                    how = "has no values, it is on the meta device: load the model on another one"
                raise SaveError(f"{name} cannot be saved: it {how} first")

    def plan(self) -> Plan:
        planned = [self._plan_file(path, parts) for path, parts in self.parts.inventory.by_file.items()]
        stored = self.store.manifest.masks if self.store is not None else ()
        masks = {str(mask) for mask in stored} - self.parts.discarded | self.parts.statistics.keys()
        copied = {file.path for file in planned if file.entry is not None}
        tier = self._tier(copied)
        planned += [self._plan_statistics(Sources(mask)) for mask in sorted(masks)]
        blocks = range(1, self.parts.num_blocks + 1) if tier is not None else ()
        return Plan([*planned, *(file for block in blocks for file in self._plan_tier(block, tier or 0, copied))], tier)

    def _check_low_precision(self) -> None:
        """Refuse what would be lost: no save writes a block in low precision as it is in memory."""
        for part in sorted(part for part in self.resident if part.is_low):
            try:
                unchanged = self.parts.is_unchanged(part, self._own(part))
            except (RepositoryError, OSError):
                continue  # The source is gone: what is saved of the rest goes without the tier, and says so.
            if not unchanged:
                raise SaveError(
                    f"{part} was changed, and would not be saved: what is stored follows from the teacher. Change the "
                    "teacher itself, loaded with keep_all=True, or load the model again to be rid of the change"
                )

    def _tier(self, copied: set[str]) -> int | None:
        """The tier that the save has: that of the model, unless the teacher is no more what it was made of."""
        bits = self.parts.tier
        if bits is None or self.parts.makes_tier:
            return bits
        blocks = range(1, self.parts.num_blocks + 1)
        if copied.issuperset(teacher_shard(block, self.parts.num_blocks) for block in blocks):
            return bits
        logger.warning(
            "saved without the tier of low precision, which was of another teacher, or of another dtype: call add_tier "
            "for one of this teacher, and save again"
        )
        return None

    def _plan_tier(self, block: int, bits: int, copied: set[str]) -> list[PlannedFile]:
        count = self.parts.num_blocks
        paths = quantised_file(block, count), refinement_file(block, count)
        part = self.parts.inventory.parts[PartId("teacher", block)]
        parameters = (part.num_parameters, 0)
        if self.store is not None and self.store.manifest.tier == bits and teacher_shard(block, count) in copied:
            entries = [self.store.manifest.get(path) for path in paths]
            return [PlannedFile(p, n, e, None) for p, n, e in zip(paths, parameters, entries, strict=True)]

        # Both files come of one split, which is let go of with the second.
        kept: list[FileContents] = []

        def low() -> FileContents:
            tensors, metadata, rest = split(self._gather([part]).tensors, bits)
            kept[:] = [FileContents(rest)]
            return FileContents(tensors, metadata)

        def refinement() -> FileContents:
            if not kept:
                low()
            return kept.pop()

        return [
            PlannedFile(paths[0], parameters[0], None, low),
            PlannedFile(paths[1], parameters[1], None, refinement),
        ]

    def _plan_file(self, path: str, parts: list[Part]) -> PlannedFile:
        parameters = sum(part.num_parameters for part in parts)
        # A file of several parts is the student's, which each stage below the last needs.
        blocks, of_student = (parts[0].blocks, parts[0].student_blocks) if len(parts) == 1 else ((), ())
        entry = self._same_dtype_entry(path)
        if entry is not None and self._is_unchanged(parts):
            return PlannedFile(path, parameters, entry, None, blocks, of_student)
        return PlannedFile(path, parameters, None, lambda: self._gather(parts), blocks, of_student)

    def _is_unchanged(self, parts: list[Part]) -> bool:
        resident = [part for part in parts if part in self.resident]
        try:
            return all(self.parts.is_unchanged(part, self._own(part)) for part in resident)
        except (RepositoryError, OSError):
            # The source is gone or was written over; what is in memory needs no source.
            if len(resident) < len(parts):
                raise
            return False

    def _plan_statistics(self, mask: Sources) -> PlannedFile:
        path, own = statistics_file(mask), self.parts.statistics.get(mask.mask)
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
        names = statistics_names(mask, self.parts.networks.blueprints)
        return PlannedFile(
            path, 0, None, lambda: FileContents({d: tensors[n].cpu().to(self.dtype) for d, n in names.items()})
        )

    def _same_dtype_entry(self, path: str) -> FileEntry | None:
        if self.store is None or self.store.dtype != self.dtype:
            return None
        return self.store.manifest.get(path)

    def _gather(self, parts: list[Part]) -> FileContents:
        tensors: Tensors = {}
        for part in parts:
            found = self._own(part) if part in self.resident else self.parts.values(part)
            for name, tensor in found.items():
                dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
                tensors[part.specs[name].checkpoint_name] = tensor.detach().to("cpu", dtype)
        return FileContents(tensors)

    def _own(self, part: Part) -> Tensors:
        return {name: self.state_dict.get(name, tensor) for name, tensor in part.tensors().items()}


def _under_first_names(state_dict: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """A state dict with each tied tensor once, under the name of its first place, whichever of its names were given.

    Raises:
        ValueError: If the names of one tensor have different values: it can be saved with one of them alone.
    """
    found = {name: tensor for name, tensor in state_dict.items() if name not in aliases}
    for name in aliases.keys() & state_dict.keys():
        first = found.setdefault(aliases[name], state_dict[name])
        if first is not state_dict[name] and not same_bits(first, state_dict[name]):
            raise ValueError(
                f"state_dict has {name!r} and {aliases[name]!r} with different values, and they are one tensor by the "
                "model's config: give one of them"
            )
    return found
