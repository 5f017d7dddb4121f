"""Tensors of a repository, checked against what the parts of the model must be before any is attached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from threading import Event

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..arrays.mapped import CODES
from ..arrays.packing import Q_PLANE, SCALES, describe, matrix, residual_names
from ..errors import RepositoryError
from ..repository.layout import quantised_file, refinement_file, statistics_file
from ..repository.manifest import FileEntry, Manifest
from ..repository.source import Repository, Verified
from ..repository.verification import is_unchanged
from ..sources import PartId, Role, Sources
from .blueprint import Blueprint
from .part import Inventory, Part, Tensors
from .tier import floating_shapes, read_split

logger = logging.get_logger(__name__)

# Whole numbers, the widest first.
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


class WeightStore:
    """The weights of one repository, part by part.

    Tensors are memory-mapped, unless they are to be copied, in the stored dtype, on the CPU, and named as in memory. A
    part is given out only after its whole file has been checked: hash, names, shapes and dtypes.

    Args:
        repository: Where the files are.
        manifest: The repository's manifest.
        inventory: The parts of the model.
        copies: Copy tensors out of their files, which may then change under them.
        ignore_mismatched_heads: Let tensors of the last blocks have another shape; they are left out.

    Raises:
        RepositoryError: If the manifest disagrees with the parts or names an unknown dtype.
    """

    def __init__(
        self,
        repository: Repository,
        manifest: Manifest,
        inventory: Inventory,
        *,
        copies: bool = False,
        ignore_mismatched_heads: bool = False,
    ) -> None:
        self.repository = repository
        self.manifest = manifest
        self.copies = copies
        self.ignore_mismatched_heads = ignore_mismatched_heads
        self.inventory = inventory
        self.mismatched: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
        # Path in the repository -> its local path, and what the file system said when it was checked.
        self._checked: dict[str, Verified] = {}
        num_blocks = inventory.networks.num_blocks
        if manifest.num_blocks != num_blocks:
            raise RepositoryError(
                f"{repository}: pwl_index.json has {manifest.num_blocks} blocks, config.json has {num_blocks}"
            )
        if manifest.dtype not in CODES:
            raise RepositoryError(
                f"{repository}: pwl_index.json has dtype {manifest.dtype!r}, expected one of {', '.join(CODES)}"
            )

    def after_save(self, manifest: Manifest) -> WeightStore:
        """The weights of the same repository, as it has just been saved."""
        return WeightStore(self.repository, manifest, self.inventory, copies=self.copies)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every floating tensor."""
        found: torch.dtype = getattr(torch, self.manifest.dtype)
        return found

    def prepare(
        self,
        paths: list[str],
        verified: Mapping[str, Verified] | None = None,
        fetched: Mapping[str, Path] | None = None,
        *,
        cancelled: Event | None = None,
    ) -> None:
        """Fetch and check files, all or none: afterwards their parts can be read.

        Args:
            paths: The files.
            verified: What `Repository.verify` said of files that it was asked about before.
            fetched: Local paths of files that were fetched just now.
            cancelled: Ends downloads.

        Raises:
            RepositoryError: If a file is not listed, not the manifest's, or holds other tensors than it must.
        """
        wanted = [path for path in paths if not is_unchanged(self._checked.get(path))]
        entries = []
        for path in wanted:
            entry = self.manifest.get(path)
            if entry is None:
                raise RepositoryError(f"{self.repository}: pwl_index.json does not list {path!r}")
            shared = self.inventory.by_file.get(path)
            if shared and entry.is_shared and (listed := _sharers(entry)) != (own := _sharers(shared[0])):
                raise RepositoryError(
                    f"{self.repository}: pwl_index.json says that {path!r} is shared by blocks {listed}, by "
                    f"config.json it is by {own}"
                )
            entries.append(entry)
        at_hand = dict(verified or {})
        missing = [entry for entry in entries if entry.path not in at_hand]
        found = {path: at_hand[path] for path in wanted if path in at_hand}
        found |= self.repository.verify(missing, fetched, cancelled=cancelled)
        for path in wanted:
            self._check_tensors(path, found[path][0])
        self._checked |= found

    def local(self, path: str) -> Path:
        """The local path of a file that was fetched and checked."""
        self.prepare([path])
        return self._checked[path][0]

    def files_of(self, part: Part) -> tuple[str, ...]:
        """The files that a part is read from: its own, or its low precision, which is here, and what refines that."""
        if part.id.kind == "teacher" and self.repository.refines(self.manifest, part.id.number):
            number, count = part.id.number, self.manifest.num_blocks
            return quantised_file(number, count), refinement_file(number, count)
        return (part.file,)

    def read(self, part: Part) -> Tensors:
        """The tensors of a part, by full in-memory name."""
        paths = self.files_of(part)
        self.prepare(list(paths))
        if len(paths) == 1 and not part.is_low:
            return self._read(part.file, {name: spec.checkpoint_name for name, spec in part.specs.items()})
        tensors = read_split(part.specs, [self._checked[path][0] for path in paths], self.dtype)
        self._check_untouched(*paths)
        return tensors

    def statistics(self, sources: Sources) -> Tensors | None:
        """The BatchNorm statistics of a mask by full in-memory name, None if the repository has none."""
        path = statistics_file(sources)
        if self.manifest.get(path) is None:
            return None
        self.prepare([path])
        return self._read(path, {name: on_disk for on_disk, name in self._statistics_names(sources).items()})

    def _read(self, path: str, names: Mapping[str, str]) -> Tensors:
        with safe_open(self._checked[path][0], framework="pt", device="cpu") as file:
            stored = set(file.keys()) if self.ignore_mismatched_heads else None
            tensors = {
                name: file.get_tensor(on_disk) for name, on_disk in names.items() if stored is None or on_disk in stored
            }
        if self.copies:
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self._check_untouched(path)
        if self.ignore_mismatched_heads:
            expected = self._expected(path)
            tensors = {n: t for n, t in tensors.items() if tuple(t.shape) == expected[names[n]][0]}
        return tensors

    def _check_untouched(self, *paths: str) -> None:
        for path in paths:
            if not is_unchanged(self._checked.get(path)):
                raise RepositoryError(
                    f"{self.repository}: {path!r} was replaced while it was being read; load it again"
                )

    def _expected_of_tier(self, path: str, block: int) -> dict[str, tuple[tuple[int, ...] | None, str]]:
        """Name in a file of the tier -> shape, None if it is of any length, and code of the dtype."""
        if path == refinement_file(block, self.manifest.num_blocks):
            return dict.fromkeys(residual_names(self.manifest.dtype), (None, "U8"))
        specs = self.inventory.parts[PartId("quantised", block)].specs
        sizes = {name: matrix(shape) for name, shape in floating_shapes(specs).items()}
        found: dict[str, tuple[tuple[int, ...] | None, str]] = {
            spec.checkpoint_name: (spec.shape, CODES[self.manifest.dtype] if spec.is_floating else "I64")
            for spec in specs.values()
            if sizes.get(spec.checkpoint_name) is None
        }
        return found | {Q_PLANE: (None, "U8"), SCALES: ((sum(size[0] for size in sizes.values() if size),), "F32")}

    def _expected(self, path: str) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Name in the file -> shape and whether it is floating."""
        parts = self.inventory.by_file.get(path)
        if parts is not None:
            specs = [spec for part in parts for spec in part.specs.values()]
            return {spec.checkpoint_name: (spec.shape, spec.is_floating) for spec in specs}
        for mask in self.manifest.masks:
            if path == statistics_file(mask):
                shapes = {name: spec.shape for part in self._blocks_behind(mask) for name, spec in part.specs.items()}
                return {d: (shapes[n], True) for d, n in self._statistics_names(mask).items()}
        raise RepositoryError(f"{self.repository}: {path!r} is no file of this format")

    def _blocks_behind(self, sources: Sources) -> list[Part]:
        """The blocks of a mask that see features of a converter."""
        return [self.inventory.parts[PartId(sources.roles[k - 1], k)] for k in sources.converted_blocks]

    def _statistics_names(self, sources: Sources) -> dict[str, str]:
        """Name in the file -> full in-memory name, for the running statistics behind a mask's first converter."""
        return statistics_names(sources, self.inventory.networks.blueprints)

    def _check_tensors(self, path: str, local: Path) -> None:
        where = f"{self.repository}: {path!r}"
        try:
            with safe_open(local, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                slices = {name: file.get_slice(name) for name in list(file.keys())}
                stored = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            raise RepositoryError(f"{where} is not a safetensors file: {error}") from error
        expected: dict[str, tuple[tuple[int, ...] | None, str]]
        if (entry := self.manifest.get(path)) is not None and entry.tier_block is not None:
            expected = self._expected_of_tier(path, entry.tier_block)
            described = describe(floating_shapes(self.inventory.parts[PartId("quantised", entry.tier_block)].specs))
            if Q_PLANE in expected and any(metadata.get(key) != text for key, text in described.items()):
                raise RepositoryError(f"{where} is not of the matrices that config.json says")
        else:
            codes = {True: CODES[self.manifest.dtype], False: "I64"}
            expected = {name: (shape, codes[floating]) for name, (shape, floating) in self._expected(path).items()}
        for name in sorted(expected.keys() - stored.keys()):
            raise RepositoryError(f"{where} lacks tensor {name!r}")
        for name in sorted(stored.keys() - expected.keys()):
            raise RepositoryError(f"{where} holds tensor {name!r}, which does not belong there")
        resized = self._head_names(path) if self.ignore_mismatched_heads else {}
        for name, (shape, code) in expected.items():
            found_shape, found_code = stored[name]
            if shape is None:
                shape = (math.prod(found_shape),)
            if tuple(found_shape) != shape:
                if name in resized:
                    self.mismatched.add((resized[name], tuple(found_shape), shape))
                    logger.warning(
                        "%s: %s has shape %s, the model %s: it is drawn at random, to be trained",
                        *(where, name, list(found_shape), list(shape)),
                    )
                    continue
                raise RepositoryError(f"{where}: tensor {name!r} has shape {list(found_shape)}, expected {list(shape)}")
            if found_code != code:
                raise RepositoryError(f"{where}: tensor {name!r} has dtype {found_code}, expected {code}")

    def _head_names(self, path: str) -> dict[str, str]:
        """Name in the file -> full in-memory name, for the tensors whose shape depends on the labels."""
        parts = self.inventory.by_file.get(path, ())
        return {part.specs[name].checkpoint_name: name for part in parts for name in part.of_labels}


def _sharers(of: FileEntry | Part) -> str:
    """The blocks that share a file, or a part, in words."""
    return f"{list(of.blocks)}" + (f" and the student's {list(of.student_blocks)}" if of.student_blocks else "")


def statistics_names(sources: Sources, blueprints: Mapping[Role, Blueprint]) -> dict[str, str]:
    """Checkpoint name -> in-memory name of the running statistics behind a mask's first converter.

    Both are full names, beginning with the network's role.
    """
    found: dict[str, str] = {}
    for block in sources.converted_blocks:
        role = sources.roles[block - 1]
        for name, spec in blueprints[role].specs(block).items():
            if name.endswith((".running_mean", ".running_var")):
                found[f"{role}.{spec.checkpoint_name}"] = f"{role}.{name}"
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one of dtype and shape, and bit for bit; compared on the first one's device."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = [tensor.contiguous().reshape(-1) for tensor in (one, other.to(one.device))]
    # The widest whole numbers that fit: they are compared eight times as fast as bytes.
    ends = [end for tensor in flat for end in (tensor.nbytes, tensor.storage_offset() * tensor.itemsize)]
    dtype = next(dtype for dtype in _WHOLE if all(end % dtype.itemsize == 0 for end in ends))
    return torch.equal(*(tensor.view(dtype) for tensor in flat))
