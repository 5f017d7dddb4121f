"""The parts of a model: what is resident, of what, and from where."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..configuration_pwl import PWLConfig
from ..errors import InputError, RepositoryError, StageError
from ..repository.manifest import Manifest
from ..routes.batchnorm import Statistics
from ..routes.compiling import Compiling
from ..sources import PartId, Role, Sources
from ..transformers_internals import copy_checkpointing
from .locking import StateLock
from .networks import OF_TEACHER, Networks
from .part import Inventory, Made, Part, QuantisedPart, Tensors
from .placing import Held, put
from .structure import hooked_by_others
from .tier import coarse, digest_of
from .weights import WeightStore, same_bits

logger = logging.get_logger(__name__)


class Parts:
    """What a model is made of: its networks, converters and statistics, and the repository that they come from.

    Attributes:
        networks: The two networks and the converters.
        inventory: Every part that there can be.
        store: The repository that parts are read from; None if the model came from none.
        keep: The networks that stay resident beside the current route.
        keeps_all: Whether everything stays resident, converters included.
        statistics: BatchNorm statistics by mask: full name of a running statistic -> its values.
        discarded: Masks whose statistics in the repository are neither loaded nor saved again.
        compiling: How units are compiled, those that come later as well.
        tier: The bits of a weight in the teacher's low precision, which the model then has; None without it.
        makes_tier: Whether the tier was added to the model (`add_tier`), and is not the repository's.
        joined_from: The folders of networks that were joined: they are not saved into.
        processing: The files of what makes inputs for networks that were joined, by path.

    Args:
        model: The model whose children the networks and converters are.
        config: Its config.
        task: The Auto class of its task.
    """

    def __init__(self, model: PreTrainedModel, config: PWLConfig, task: str) -> None:
        self.networks = Networks(model, config, task)
        self.inventory = Inventory(self.networks)
        self.store: WeightStore | None = None
        self.keep: frozenset[Role] = frozenset()
        self.keeps_all = True
        self.statistics: dict[str, Statistics] = {}
        self.discarded: frozenset[str] = frozenset()
        self.compiling: Compiling | None = None
        self.tier: int | None = None
        self.makes_tier = False
        self.joined_from: tuple[str, ...] = ()
        self.processing: Mapping[str, str] = {}
        # Digests of blocks in low precision that no file of the repository tells of, as they came.
        self._marks: dict[PartId, bytes] = {}
        # Whether parameters of the teacher (True), or of the rest, require gradients, as last seen.
        self._trainable = {True: False, False: True}

    def over(self, model: PreTrainedModel) -> Parts:
        """The same parts of a replica of the model."""
        parts = copy.copy(self)
        parts.networks = copy.copy(self.networks)
        parts.networks.model = model
        parts.inventory = Inventory(parts.networks)
        return parts

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles are not compiled.
        return self.__dict__ | {"compiling": None}

    @property
    def config(self) -> PWLConfig:
        """The model's config."""
        config: PWLConfig = self.networks.model.config  # type: ignore[assignment]
        return config

    @property
    def lock(self) -> StateLock:
        """Held while the parts change, and while what is read of them must be of one stage."""
        return self.networks.lock

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return self.networks.num_blocks

    @property
    def is_whole(self) -> bool:
        """Whether all stays resident, so that a change of stage only takes another route."""
        return self.store is None or self.keeps_all

    def __iter__(self) -> Iterator[Part]:
        """Every part, in a fixed order."""
        return iter(self.inventory.parts.values())

    def resident(self) -> frozenset[Part]:
        """The parts that are attached."""
        return frozenset(part for part in self if part.is_resident)

    def wanted(self, sources: Sources) -> frozenset[Part]:
        """The parts that are to be resident at a mask; low precision is nowhere else, whatever is kept.

        Raises:
            StageError: If the mask has blocks in low precision, and there is no tier of them.
        """
        if sources.low_blocks and self.tier is None:
            raise StageError(
                f"sources {sources.mask!r} has blocks in low precision, and the model has none: make them with "
                "add_tier, or `pwl-hf quantise` for a repository"
            )
        kept = (part for part in self if not part.is_low and (self.is_whole or part.role in self.keep))
        return self.inventory.of(sources).union(kept)

    def handed_on(self, wanted: Collection[Part]) -> list[Part]:
        """What both networks share, where a change of stage takes or brings a block that runs on it.

        Args:
            wanted: The parts that are to be resident.
        """
        resident = self.resident()
        before, after = ({(part.role, part.id.number) for part in parts} for parts in (resident, wanted))
        found = []
        for part in sorted(part for part in resident if part.student_blocks):
            sharers = [("teacher", block) for block in part.blocks]
            sharers += [("student", block) for block in part.student_blocks]
            if not (before ^ after).isdisjoint(sharers):
                found.append(part)
        return found

    def check_resident(self, sources: Sources, made: Collection[Part] = ()) -> None:
        """Refuse a mask that needs what is neither resident nor about to be.

        Raises:
            StageError: With the first such part.
        """
        for part in sorted(self.inventory.of(sources)):
            if part not in made and not part.is_resident:
                advice = "" if part.is_low else ", or load the model with keep_all=True"
                raise StageError(
                    f"sources {sources.mask!r} needs {part}, which is not resident: call "
                    f"set_sources({sources.mask!r}){advice}"
                )

    def refuse_absence(self) -> None:
        """Refuse to go on unless everything is resident.

        Raises:
            StageError: With the first part that is not.
        """
        if missing := sorted({part for part in self if not part.is_low} - self.resident()):
            raise StageError(f"this needs {missing[0]}, which is not resident: load the model with keep_all=True")

    # --- Values -------------------------------------------------------------------------------------------------

    def tensors(self) -> Tensors:
        """All resident tensors of the parts, by full in-memory name."""
        return {name: tensor for part in sorted(self.resident()) for name, tensor in part.tensors().items()}

    def is_unchanged(self, part: Part, tensors: Tensors | None = None) -> bool:
        """Whether a resident part is, bit for bit, what the repository holds; of low precision, what it was made as.

        A block in low precision was made of the teacher as it was then: that the teacher has changed since does not
        change it.

        Args:
            part: The part.
            tensors: What to compare, by full in-memory name; its own tensors by default.

        Raises:
            RepositoryError: If its file is not what the manifest says.
        """
        if part.difference() is not None:
            return False
        resident = part.tensors() if tensors is None else tensors
        if (mark := self._marks.get(part.id)) is not None and digest_of(resident) == mark:
            return True
        if self.tier is None if part.is_low else self.store is None:
            return False
        stored = self.values(part)
        return stored.keys() == resident.keys() and all(
            _is_as_stored(tensor, stored[name]) for name, tensor in resident.items()
        )

    def unchanged_low(self, *, marked: bool) -> list[Part]:
        """The resident blocks in low precision that are marked, and as they came; or those that are not marked."""
        low = [part for part in sorted(self.resident()) if part.is_low and (part.id in self._marks) == marked]
        return [
            part
            for part in low
            if part.difference() is None and (not marked or digest_of(part.tensors()) == self._marks[part.id])
        ]

    def mark(self, low: Collection[Part]) -> None:
        """Note what resident blocks in low precision are now: that is no change."""
        self._marks |= {part.id: digest_of(part.tensors()) for part in low}

    def share_embedder(self, *, warn: bool) -> None:
        """Put the teacher's parameters into the embedder of the student, if the config says that both share it.

        Args:
            warn: Tell of values of the student's own that it had there.

        Raises:
            InputError: If the networks are on two devices; nothing is changed then.
        """
        both = {name: (found[0], found[-1]) for name, found in self.networks.find_embedder().items()}
        for theirs, own in both.values():
            if theirs.device != own.device:
                raise InputError(
                    f"share_embedder: the teacher is on {theirs.device} and the student on {own.device}: bring both to "
                    "one device"
                )
        lost: list[str] = []
        for name, (theirs, own) in both.items():
            if not own.is_meta and not same_bits(theirs.detach(), own.detach().to(theirs.dtype)):
                lost.append(name)
            put(self.networks.of("student"), name, Held(theirs))
        if warn and lost:
            logger.warning(
                "the student has the teacher's embedder from now on in place of its own, which differed in %d "
                "tensor(s), such as %s: give a student that was trained with this one, or train it",
                *(len(lost), lost[0]),
            )

    # --- Coming and going ---------------------------------------------------------------------------------------

    def note_trainable(self) -> None:
        """Note if new parameters, of the teacher and of the rest, are to require gradients: as resident ones do."""
        for of_teacher in (True, False):
            children = self.networks.model.named_children()
            networks = [child for name, child in children if (name in OF_TEACHER) == of_teacher]
            modules = chain.from_iterable(network.modules() for network in networks)
            found = (p.requires_grad for module in modules for p in module._parameters.values() if p is not None)
            first = next(found, None)
            if first is not None:
                self._trainable[of_teacher] = first or any(found)

    def make(
        self, part: Part, device: torch.device, dtype: torch.dtype, made: Mapping[Part, Made] | None = None
    ) -> Made:
        """A part's modules from the repository, in the state that the rest of the model is in.

        Args:
            part: The part.
            device: Where it goes.
            dtype: Its floating dtype.
            made: What was made before it and is not attached yet.

        Raises:
            RepositoryError: If the model came from none, or its file is not what the manifest says.
        """
        model = self.networks.model
        values = _cast(self.values(part), device, dtype)
        self._marks.pop(part.id, None)
        if self.is_made(part):
            self._marks[part.id] = digest_of(values)
        modules = part.make(values, device, made or {})
        copy_checkpointing(model, modules.values())
        units = part.units if self.compiling is not None else ()
        for name, module in modules.items():
            if not self._trainable[part.of_teacher]:
                module.requires_grad_(False)
            if model.training and not part.of_teacher:
                module.train()
            if self.compiling is not None and name in units:
                self.compiling.apply(module)
        return modules

    def new_statistics(self, masks: Collection[Sources]) -> dict[str, Tensors]:
        """The repository's statistics of masks that have none in memory, and were not discarded."""
        if self.store is None:
            return {}
        known = self.statistics.keys() | self.discarded
        exact = {mask.exact for mask in masks if mask.exact.mask not in known}
        found = {mask.mask: self.store.statistics(mask) for mask in exact}
        return {mask: tensors for mask, tensors in found.items() if tensors is not None}

    def tell_of_hooks(self, part: Part) -> None:
        """Warn of what a user has put on the modules of a part that is about to be released, and that runs no more."""
        if (hooked := hooked_by_others(part.modules().values())) is not None:
            logger.warning(
                "%s is released, and with it a hook, or a forward, that was put on its %s: put it on the model itself, "
                "or load the model with keep_all=True",
                *(part, hooked),
            )

    def compile(self, compiling: Compiling) -> None:
        """Compile the units that are resident, and those that come later."""
        self.compiling = compiling
        for part in sorted(self.resident()):
            modules = part.modules()
            for name in part.units & modules.keys():
                compiling.apply(modules[name])

    def take_values(self, store: WeightStore, *, teacher_too: bool = False) -> None:
        """Copy the values of a repository into what is resident, and take over its statistics of masks.

        Args:
            store: A repository of the same networks, in the same dtype.
            teacher_too: Copy the teacher's as well.

        Raises:
            RepositoryError: If a file is not what the manifest says.
        """
        device = self.networks.model.device
        for part in self:
            if not part.is_low and (teacher_too or not part.of_teacher):
                stored = store.read(part)
                for name, tensor in part.tensors().items():
                    tensor.copy_(stored[name])
        statistics = {mask.mask: store.statistics(mask) or {} for mask in store.manifest.masks}
        self.statistics = {
            mask: {name: tensor.to(device, copy=True) for name, tensor in found.items()}
            for mask, found in statistics.items()
        }
        # What the model was loaded from may have statistics of masks for which the other repository has none.
        known = self.store.manifest.masks if self.store is not None else ()
        self.discarded |= {mask.mask for mask in known} - statistics.keys()

    def is_made(self, part: Part) -> bool:
        """Whether a part follows from the teacher's own block: low precision, where that is here or no file has it."""
        return part.is_low and (self.keeps_all or self.makes_tier)

    def add_tier(self, bits: int) -> None:
        """Let low precision be made of the teacher, whatever the repository has of it.

        Args:
            bits: 8 or 4.
        """
        # What a file has told of until now is not what will be made.
        self.mark([part for part in self.unchanged_low(marked=False) if self.is_unchanged(part)])
        self.tier, self.makes_tier = bits, True

    def saved_over(self, manifest: Manifest) -> None:
        """Take over the files that a save has put in the place of those that the parts come from.

        Args:
            manifest: Their manifest.
        """
        if self.store is None:
            raise RuntimeError("the parts come from no repository")
        # The files that they came from are gone; the save has compared them.
        self.mark(self.unchanged_low(marked=False))
        self.store, self.tier, self.makes_tier = self.store.after_save(manifest), manifest.tier, False
        self.config.fingerprint = manifest.fingerprint

    def values(self, part: Part) -> Tensors:
        """What the tensors of a part are to be: as the repository has them, or as low precision follows from the block.

        Raises:
            RepositoryError: If the model came from none, or the part's file is not what the manifest says.
        """
        if isinstance(part, QuantisedPart) and self.is_made(part) and self.tier is not None:
            exact = self.inventory.parts[part.exact]
            return coarse(part, exact.tensors() if exact.is_resident else self.values(exact), self.tier)
        if self.store is None:
            raise RepositoryError(f"{part} is neither in memory nor in a repository")
        return self.store.read(part)


def _cast(tensors: Tensors, device: torch.device, dtype: torch.dtype) -> Tensors:
    return {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in tensors.items()}


def _is_as_stored(resident: torch.Tensor, stored: torch.Tensor) -> bool:
    if resident.is_meta:
        return resident.shape == stored.shape  # It has no values that could be lost: hooks are refused before.
    return same_bits(resident, stored.to(resident.device, resident.dtype))
