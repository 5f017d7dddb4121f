"""One network of a PWL model without its weights: its blocks, what they share, their modules and names on disk.

A block's modules are attached to and released from a transformers model of the original class, in
which a `Vacant` module stands wherever nothing is resident. Vacant modules have no parameters, so the
model's size, state dict and devices are those of what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError, RepositoryError
from ..families.base import settings_of
from ..families.registry import family_of
from ..routes.cuts import units_of_block
from ..sources import WITH_STUDENT, Role
from ..transformers_internals import checkpoint_names, fill_missing, mark_initialized, tied_names
from .placing import (
    Held,
    Vacant,
    as_parameter,
    assign,
    is_there,
    keep_within,
    leave_meta,
    put,
    raise_incomplete,
    take_out,
)
from .skeletons import build_skeleton
from .structure import Structure, lies_within, special_tensor


class _Empty:
    """Mixed into the class of a transformers model with nothing in it, which has neither dtype nor device.

    transformers takes those of the first parameter, and where there is none raises a StopIteration, which even
    `hasattr` lets through.
    """

    @property
    def device(self) -> torch.device:
        raise AttributeError("device")

    @property
    def dtype(self) -> torch.dtype:
        raise AttributeError("dtype")

    def __getattr__(self, name: str) -> Any:
        if name in ("device", "dtype"):
            raise AttributeError(f"nothing of this network is resident, so it has no {name}: ask the PWL model")
        return super().__getattr__(name)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Made on the spot, its class cannot be found by name.
        return _new_empty, (type(self).__bases__[1],), self.__getstate__()


def _mark_empty(network: PreTrainedModel) -> None:
    """Let the models in a network be of their original class, those without a parameter of an `_Empty` one."""
    for part in network.modules():
        if isinstance(part, PreTrainedModel):
            is_empty, is_marked = next(part.parameters(), None) is None, isinstance(part, _Empty)
            if is_empty and not is_marked:
                part.__class__ = _empty_class(type(part))  # type: ignore[arg-type]
            elif is_marked and not is_empty:
                part.__class__ = type(part).__bases__[1]


@cache
def _empty_class(model_class: type[PreTrainedModel]) -> Any:
    as_the_original = {name: getattr(model_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(model_class.__name__, (_Empty, model_class), as_the_original)


def _new_empty(model_class: type[PreTrainedModel]) -> Any:
    empty_class = _empty_class(model_class)  # type: ignore[arg-type]
    return empty_class.__new__(empty_class)


@dataclass(frozen=True)
class TensorSpec:
    """A persistent tensor of a network: its checkpoint name, shape and kind."""

    checkpoint_name: str
    shape: tuple[int, ...]
    is_floating: bool
    is_parameter: bool


@dataclass(frozen=True)
class Shared:
    """What several blocks of a network share: one parameter at several places (tied), or a module that each needs.

    Args:
        name: The in-memory name of the tensor, at its first place, or the path of the module.
        blocks: The blocks (from 1) that need it.
        places: The in-memory names of a tied tensor; none of a module.
    """

    name: str
    blocks: tuple[int, ...]
    places: tuple[str, ...] = ()


class Blueprint:
    """The plan of one network, from its config alone.

    Args:
        role: Whose network it is.
        config: The network's config. The object itself is used: attention settings are shared through it.
        cuts: Its N block ends in units.
        task: The Auto class of its task, such as `"AutoModelForImageClassification"`.
        shares_embedder: Whether the tensors of its embedder are the other network's as well, and so of no block.

    Raises:
        ValueError: If the family's paths do not cover the network's tensors.
        InputError: If the embedder is to be shared and cannot be, with the reason.
    """

    def __init__(
        self, role: Role, config: PreTrainedConfig, cuts: list[int], task: str, *, shares_embedder: bool = False
    ) -> None:
        self.role = role
        self.config = config
        self.cuts = cuts
        self.shares_embedder = shares_embedder
        self.family = family_of(config)
        self.model_class = self.family.class_for(config, task)
        # The paths of the units themselves, without embedder and head.
        self.units = frozenset(path for unit in range(cuts[-1]) for path in self.family.unit_paths(config, unit))
        # Of each block, and of each thing that is shared, by name.
        self._specs: dict[int | str, dict[str, TensorSpec]] = {}
        self._structures: dict[int | str, Structure] = {}
        self._shared: tuple[Shared, ...] = ()
        # Paths of modules with buffers alone, which neither a block nor a file has.
        self._frame: tuple[str, ...] = ()
        # Parameters of modules that hold blocks; they go with the first one.
        self._loose: tuple[str, ...] = ()
        # In-memory name of a tied tensor -> that of its first place.
        self._tied: dict[str, str] = {}
        # Of an embedder that is shared, path of a module or tensor -> what it is.
        self._embedder: dict[str, str] = {}
        # Modules on the meta device, left over from building; each is used once.
        self._spare: dict[str, nn.Module] = {}
        # The network that the specs were read from, until it is wanted; before, one whose paths alone were.
        self._skeleton: PreTrainedModel | None = None
        self._unread: PreTrainedModel | None = None

    def build(self) -> PreTrainedModel:
        """The whole network, freshly initialised on the default device in the default dtype."""
        return self.model_class(self.config)

    def build_vacant(self) -> PreTrainedModel:
        """The network with nothing in it."""
        network, self._skeleton = self._skeleton or self._build_meta(), None
        for path in chain.from_iterable(self._places.values()):
            self._vacate(network, path)
        for name in self._loose:
            take_out(network, name)
        self.place_frame(network, torch.device("cpu"))
        self._note_holes(network)
        return network

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return len(self.cuts)

    def paths(self, section: int | str) -> tuple[str, ...]:
        """The paths of a block's modules, or of a shared one; block 1 has the embedder, block N the head."""
        if section == WITH_STUDENT:
            embedder = self.family.embedder_paths(self.config)
            return tuple(path for path in self._places[1] if path in embedder)
        return self._places[section]

    @property
    def shared(self) -> tuple[Shared, ...]:
        """What its blocks share, in the order of the network."""
        # Most networks share nothing, which their class and config tell: a first answer need not build the teacher.
        ties = self.model_class._tied_weights_keys and getattr(self.config, "tie_word_embeddings", False)
        if ties or self.family.shared_paths(self.config):
            self._read_once()
        return self._shared

    @property
    def aliases(self) -> Mapping[str, str]:
        """The in-memory names of tied tensors at all places but the first -> the name of the first."""
        _ = self.shared  # reads the network, if it may have any
        return self._tied

    def specs(self, section: int | str) -> dict[str, TensorSpec]:
        """The persistent tensors of a block (from 1), or of what is shared, by in-memory name.

        Those of an embedder that both networks share are the section `WITH_STUDENT`, and not of block 1.
        """
        self._read_once()
        return self._specs[section]

    def is_resident(self, network: nn.Module, section: int | str) -> bool:
        """Whether a block, or a shared module, is in the network."""
        return not isinstance(network.get_submodule(self.paths(section)[0]), Vacant)

    def find_tied(self, network: nn.Module, places: Iterable[str]) -> nn.Parameter | None:
        """The first of some parameters, by in-memory name, that the network has now; None if it has none of them."""
        found = (self._resident_tensor(network, name) for name in places)
        return next((parameter for parameter in found if parameter is not None), None)

    def other_embedder(self, other: Blueprint) -> str | None:
        """How another network's embedder differs from this one's, values aside, in words; None if it does not.

        Args:
            other: The plan of the other network; both share their embedders.
        """
        for plan in (self, other):
            plan._read_once()
        own, theirs = self._embedder, other._embedder
        for name in {**own, **theirs}:
            if own.get(name) != theirs.get(name):
                has = theirs.get(name, "not there")
                return f"{name!r} is {has} of the {other.role}, {own.get(name, 'not there')} of the {self.role}"
        return None

    def difference(self, network: nn.Module, section: int | str | None = None) -> str | None:
        """How what is resident differs from what the config describes, its values aside.

        Args:
            network: The network, or what its modules stand in by the same paths.
            section: A block (from 1) or a shared module's path; the whole network, as far as it is resident, by
                default.

        Returns:
            The first difference in words, such as an adapter's tensor; None if there is none.
        """
        if section is not None:
            self._read_once()
            paths = self.paths(section)
            difference = self._structures[section].difference(Structure.of(network, paths))
            return difference or special_tensor(network, paths) or self._untied(network)
        # By the config as it is now: one that was edited since would be saved with modules of another.
        expected = Structure.of(self._new_skeleton())
        vacant = tuple(
            path
            for path in chain.from_iterable(self._places.values())
            if isinstance(network.get_submodule(path), Vacant)
        )
        vacant += tuple(name for name in self._loose if not self.is_resident(network, 1))
        difference = expected.without(vacant).difference(Structure.of(network).without(vacant))
        return difference or special_tensor(network) or self._untied(network)

    def make(
        self,
        network: PreTrainedModel,
        section: int | str,
        tensors: Mapping[str, torch.Tensor],
        device: torch.device,
        tied: Mapping[str, nn.Parameter] = MappingProxyType({}),
        shared: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> dict[str, nn.Module]:
        """Build the modules of a block, or a shared one, over given tensors, without touching the network.

        Args:
            network: The network they are for; its initialisation fills buffers that are not persistent, and
                tensors that `tensors` lacks (a head of another size).
            section: The block (from 1), or the path of the shared module.
            tensors: In-memory name -> tensor, used and not copied, in their final dtype and on `device`.
            device: Where the rest goes.
            tied: Parameters that other blocks have as well, or the other network, by the in-memory name of their first
                place.
            shared: Shared modules that were made before and are not attached yet, by path.

        Returns:
            Path -> module, in eval mode, for `attach`.
        """
        modules = {path: self._spare_module(path) for path in self._places[section]}
        for path, inner in self._within(modules):
            put(modules[path], inner.removeprefix(f"{path}."), shared.get(inner, network.get_submodule(inner)))
        given: dict[str, torch.Tensor] = {**tensors, **tied}
        # One parameter at all its places, also within a block.
        given |= {name: as_parameter(given, first) for name, first in self._tied.items() if first in given}
        for path, module in modules.items():
            if not assign(path, module, given):
                for name, tensor in module.state_dict(keep_vars=True).items():
                    if f"{path}.{name}" in given:
                        mark_initialized(tensor)
                dtype = next((t.dtype for t in given.values() if t.is_floating_point()), torch.get_default_dtype())
                leave_meta(module, device, dtype)
                # Whatever torch.device a caller is within: buffers are computed in the default one.
                with device:
                    fill_missing(network, module)
            module.eval()
        return modules | {name: Held(as_parameter(given, name)) for name in self._loose if section == 1}

    def attach(self, network: PreTrainedModel, modules: Mapping[str, nn.Module]) -> None:
        """Put modules that `make` built into their places."""
        kept = {inner: network.get_submodule(inner) for _, inner in self._within(modules) if inner not in modules}
        for path, module in {**modules, **kept}.items():
            put(network, path, module)
        self._note_holes(network)

    def release(self, network: PreTrainedModel, section: int | str) -> None:
        """Take a block, or a shared module, out of the network; a route that still holds its modules keeps them."""
        for path in self._places[section]:
            self._vacate(network, path)
        for name in self._loose if section == 1 else ():
            take_out(network, name)
        self._note_holes(network)

    def place_frame(self, network: PreTrainedModel, device: torch.device) -> None:
        """Bring buffers that no block has and no file, such as a decoder's rotary tables, to a device."""
        for path in self._frame:
            module = network.get_submodule(path)
            tensors = [tensor for tensor in module._buffers.values() if tensor is not None]
            if any(tensor.is_meta for tensor in tensors):
                leave_meta(module, device, None)
                with device:
                    fill_missing(network, module)
            elif any(tensor.device != device for tensor in tensors):
                module.to(device)

    # --- How it is read ----------------------------------------------------------------------------------------

    def _new_skeleton(self) -> PreTrainedModel:
        try:
            return build_skeleton(self.model_class, self.config, self.family.layers)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise RepositoryError(
                f"the {self.role} cannot be built of its config: {type(error).__name__}: {error}"
            ) from error

    @cached_property
    def _places(self) -> dict[int | str, tuple[str, ...]]:
        """The paths of all that is attached and released: blocks by number, shared modules by path."""
        found: dict[int | str, tuple[str, ...]] = {
            **{block: self._paths_of(block) for block in range(1, self.num_blocks + 1)},
            **{path: (path,) for path in self.family.shared_paths(self.config)},
        }
        if not self.family.has_optional_paths:
            return found
        self._unread = self._new_skeleton()
        there = {name for name, _ in self._unread.named_modules()}
        first_of_each = {self.family.unit_paths(self.config, unit)[0] for unit in range(self.cuts[-1])}
        if lacking := sorted(first_of_each - there):
            raise ValueError(
                f"family {self.family.model_type!r} names {lacking[0]!r}, and {self.model_class.__name__} has no such "
                "module"
            )
        return {section: kept for section, paths in found.items() if (kept := tuple(p for p in paths if p in there))}

    @cached_property
    def _block_of(self) -> dict[str, int]:
        return {path: block for block, paths in self._places.items() if isinstance(block, int) for path in paths}

    def _vacate(self, network: PreTrainedModel, path: str) -> None:
        module = network.get_submodule(path)
        vacant = Vacant(self.role, self._block_of.get(path, 1), path, settings_of(module))
        for _, inner in self._within([path]):
            keep_within(vacant, module, inner.removeprefix(f"{path}."))
        put(network, path, vacant.train(module.training))

    def _within(self, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Shared modules that lie within modules at some paths: the outer path, and the shared module's."""
        shared = self.family.shared_paths(self.config)
        return (
            (path, inner)
            for path in paths
            for inner in shared
            if inner.startswith(f"{path}.") and inner in self._places
        )

    def _note_holes(self, network: PreTrainedModel) -> None:
        """Refuse `save_pretrained` of a network with a block missing, before it writes a file."""
        _mark_empty(network)
        network.__dict__.pop("save_pretrained", None)
        for block in range(1, self.num_blocks + 1):
            if not self.is_resident(network, block):
                network.save_pretrained = partial(raise_incomplete, self.role, block)  # type: ignore[method-assign]
                return

    def _untied(self, network: nn.Module) -> str | None:
        """The first tied tensor that has been given another value at one of its places, in words."""
        for name, first in self._tied.items():
            one, other = (self._resident_tensor(network, n) for n in (name, first))
            if one is not None and other is not None and one is not other:
                return f"{name!r} is not tied to {first!r}, as its config says"
        return None

    def _resident_tensor(self, network: nn.Module, name: str) -> nn.Parameter | None:
        path, _, leaf = name.rpartition(".")
        return network.get_submodule(path)._parameters.get(leaf) if is_there(network, path) else None

    def _paths_of(self, block: int) -> tuple[str, ...]:
        first, last = block == 1, block == len(self.cuts)
        embedder = self.family.embedder_paths(self.config) if first else ()
        units = units_of_block(self.cuts, block)
        head = self.family.head_paths(self.config) if last else ()
        return (*embedder, *(p for unit in units for p in self.family.unit_paths(self.config, unit)), *head)

    def _read_once(self) -> None:
        if not self._specs:
            self._skeleton = self._build_meta()

    def _build_meta(self) -> PreTrainedModel:
        places = self._places
        network, self._unread = self._unread or self._new_skeleton(), None
        if not self._specs:
            self._read(network)
        self._spare = {path: network.get_submodule(path) for path in chain.from_iterable(places.values())}
        return network

    def _read(self, network: PreTrainedModel) -> None:
        """Read from a network which tensors its blocks have, what they share, and how it is all called on disk."""
        names = checkpoint_names(network)
        state = network.state_dict(keep_vars=True)
        self._structures = {section: Structure.of(network, paths) for section, paths in self._places.items()}
        within = tuple(chain.from_iterable(self._places.values()))
        self._frame = tuple(path for path, m in network.named_modules() if m._buffers and not lies_within(path, within))
        # 1. Whose tensor each is.
        owner: dict[str, int | str] = {}
        for section, paths in self._places.items():
            prefixes = tuple(f"{path}." for path in paths)
            owner |= {name: section for name in state if name.startswith(prefixes)}
        self._loose = tuple(name for name in self.family.loose_parameters(self.config) if name in state)
        owner |= dict.fromkeys(self._loose, 1)
        if left := state.keys() - owner.keys():
            raise ValueError(
                f"the paths of family {self.family.model_type!r} do not cover tensor {min(left)!r} of "
                f"{type(network).__name__}"
            )
        # 2. Tied tensors: one place has them; those of several blocks belong to none.
        self._tied = {name: first for name, first in tied_names(network).items() if name in state and first in state}
        places: dict[str, list[str]] = {}
        for name, first in self._tied.items():
            places.setdefault(first, [first]).append(name)
        every_block = tuple(range(1, self.num_blocks + 1))
        shared = self.family.shared_paths(self.config)
        self._shared = tuple(Shared(path, every_block) for path in shared if path in self._places)
        for first, found in places.items():
            blocks = tuple(sorted({block for name in found if isinstance(block := owner[name], int)}))
            if len(blocks) > 1:
                self._shared += (Shared(first, blocks, tuple(found)),)
                owner[first] = first
        # 3. What it shares with the other network is of no block.
        if self.shares_embedder:
            owner |= dict.fromkeys(self._read_embedder(network, owner), WITH_STUDENT)
        # 4. What each section holds.
        specs: dict[int | str, dict[str, TensorSpec]] = {section: {} for section in (*self._places, *owner.values())}
        for name, section in owner.items():
            if name not in self._tied:
                t = state[name]
                spec = TensorSpec(names[name], tuple(t.shape), t.is_floating_point(), isinstance(t, nn.Parameter))
                specs[section][name] = spec
        self._specs = specs

    def _read_embedder(self, network: PreTrainedModel, owner: Mapping[str, int | str]) -> list[str]:
        """The tensors of an embedder that is to be shared: parameters, each of one place."""
        paths, tied = self.paths(WITH_STUDENT), {*self._tied, *self._tied.values()}
        names = [name for name in owner if lies_within(name, paths) and (owner[name] == 1 or name in tied)]
        if not names:
            raise InputError(f"share_embedder: {type(network).__name__} has no embedder with weights: leave it out")
        parameters = {name for name, _ in network.named_parameters()}
        for name in names:
            if name in tied:
                raise InputError(
                    f"share_embedder: the {self.role}'s {name!r} is tied to another tensor, such as that of its head, "
                    "and cannot be the other network's too: leave share_embedder out"
                )
            if name not in parameters:
                raise InputError(
                    f"share_embedder: the {self.role}'s embedder keeps {name!r}, such as a BatchNorm's statistics, "
                    "which would be those of two networks: leave share_embedder out"
                )
        self._structures[WITH_STUDENT] = Structure.of(network, paths)
        modules = (found for path in paths for found in network.get_submodule(path).named_modules(prefix=path))
        # A rate of dropout is how a network learns, not what it computes.
        known = ((path, module) for path, module in modules if not isinstance(module, nn.Dropout))
        self._embedder = {path: f"{type(module).__name__}({module.extra_repr()})" for path, module in known}
        shapes = self._structures[WITH_STUDENT].shapes.items()
        self._embedder |= {name: f"of shape {list(shape)}" for name, shape in shapes}
        return names

    def _spare_module(self, path: str) -> nn.Module:
        if path not in self._spare:
            self._build_meta()
        return self._spare.pop(path)
