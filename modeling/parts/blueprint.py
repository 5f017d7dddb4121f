"""One network of a PWL model without its weights: its blocks, their modules and their names on disk.

A block's modules are attached to and released from a transformers model of the original class, in
which a `Vacant` module stands wherever nothing is resident. Vacant modules have no parameters, so the
model's size, state dict and devices are those of what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import StageError
from ..families.registry import family_of
from ..routes.cuts import units_of_block
from ..sources import Role
from ..transformers_internals import checkpoint_names, fill_missing, mark_initialized
from .skeletons import build_skeleton
from .structure import Structure, special_tensor


class Vacant(nn.Module):
    """Stands where a released or not yet loaded module belongs.

    Args:
        role: The network it stands in.
        block: The block (from 1) it belongs to.
        path: Its path in that network.
    """

    def __init__(self, role: Role, block: int, path: str) -> None:
        super().__init__()
        self.role, self.block, self.path = role, block, path

    def forward(self, *args: object, **kwargs: object) -> None:
        """Never succeeds.

        Raises:
            StageError: Always.
        """
        raise StageError(self._absence())

    def __getattr__(self, name: str) -> torch.Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "role" not in self.__dict__:
                raise
            raise AttributeError(f"{self._absence()} (its {name!r} was asked for)") from None

    def extra_repr(self) -> str:
        """What is missing, for `print(model)` and for errors of others that name the module."""
        return f"block {self.block} of the {self.role} is not resident"

    def _absence(self) -> str:
        return f"{self.extra_repr()}: call the PWL model, or load it with keep_all=True"

    def _save_to_state_dict(self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
        # A PWL model's state dict is what is resident; a network's, or a part's, would have holes.
        if not prefix.endswith(f"{self.role}.{self.path}."):
            raise_incomplete(self.role, self.block)


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


def raise_incomplete(role: Role, block: int, *args: object, **kwargs: object) -> None:
    """Stands for `save_pretrained` of a network while a block is missing.

    Raises:
        StageError: Always.
    """
    raise StageError(
        f"block {block} of the {role} is not resident, so the {role} alone has no complete state dict: save the PWL "
        "model, or load it with keep_all=True"
    )


@dataclass(frozen=True)
class TensorSpec:
    """A persistent tensor of a network: its checkpoint name, shape and kind."""

    checkpoint_name: str
    shape: tuple[int, ...]
    is_floating: bool
    is_parameter: bool


class Blueprint:
    """The plan of one network, from its config alone.

    Args:
        role: Whose network it is.
        config: The network's config. The object itself is used: attention settings are shared through it.
        cuts: Its N block ends in units.

    Raises:
        ValueError: If the family's paths do not cover the network's tensors.
    """

    def __init__(self, role: Role, config: PreTrainedConfig, cuts: list[int]) -> None:
        self.role = role
        self.config = config
        self.cuts = cuts
        self.family = family_of(config)
        self._paths = tuple(self._paths_of(block) for block in range(1, len(cuts) + 1))
        # The paths of the units themselves, without embedder and head.
        self.units = frozenset(path for unit in range(cuts[-1]) for path in self.family.unit_paths(config, unit))
        self._specs: tuple[dict[str, TensorSpec], ...] | None = None
        # Of each block, as it is built: kept, for its modules are used.
        self._structures: tuple[Structure, ...] = ()
        # Modules on the meta device, left over from building; each is used once.
        self._spare: dict[str, nn.Module] = {}
        # The network that the specs were read from, until it is wanted.
        self._skeleton: PreTrainedModel | None = None

    def build(self) -> PreTrainedModel:
        """The whole network, freshly initialised on the default device in the default dtype."""
        return self.family.model_class()(self.config)

    def build_vacant(self) -> PreTrainedModel:
        """The network with nothing in it."""
        network, self._skeleton = self._skeleton or self._build_meta(), None
        for block in range(1, len(self.cuts) + 1):
            self.release(network, block)
        return network

    def paths(self, block: int) -> tuple[str, ...]:
        """The paths of a block's modules; block 1 has the embedder, block N the head."""
        return self._paths[block - 1]

    def specs(self, block: int) -> dict[str, TensorSpec]:
        """The persistent tensors of a block, by in-memory name."""
        if self._specs is None:
            self._skeleton = self._build_meta()
        return self._specs[block - 1]  # type: ignore[index]

    def is_resident(self, network: PreTrainedModel, block: int) -> bool:
        """Whether a block is in the network."""
        return not isinstance(network.get_submodule(self.paths(block)[0]), Vacant)

    def difference(self, network: PreTrainedModel, block: int | None = None) -> str | None:
        """How a resident block differs from what the config describes, its values aside.

        Args:
            network: The network.
            block: The block (from 1); the whole network, as far as it is resident, by default.

        Returns:
            The first difference in words, such as an adapter's tensor; None if there is none.
        """
        if block is not None:
            if not self._structures:
                self._skeleton = self._build_meta()
            paths = self.paths(block)
            difference = self._structures[block - 1].difference(Structure.of(network, paths))
            return difference or special_tensor(network, paths)
        # By the config as it is now: one that was edited since would be saved with modules of another.
        expected = Structure.of(build_skeleton(self.family, self.config))
        numbers = range(1, len(self.cuts) + 1)
        vacant = tuple(path for k in numbers if not self.is_resident(network, k) for path in self.paths(k))
        difference = expected.without(vacant).difference(Structure.of(network).without(vacant))
        return difference or special_tensor(network)

    def make(
        self, network: PreTrainedModel, block: int, tensors: Mapping[str, torch.Tensor], device: torch.device
    ) -> dict[str, nn.Module]:
        """Build a block's modules over given tensors, without touching the network.

        Args:
            network: The network they are for; its initialisation fills buffers that are not persistent, and
                tensors that `tensors` lacks (a head of another size).
            block: The block (from 1).
            tensors: In-memory name -> tensor, used and not copied, in their final dtype and on `device`.
            device: Where the rest goes.

        Returns:
            Path -> module, in eval mode, for `attach`.
        """
        modules = {path: self._spare_module(path) for path in self.paths(block)}
        for path, module in modules.items():
            if not _assign(path, module, tensors):
                for name, tensor in module.state_dict(keep_vars=True).items():
                    if f"{path}.{name}" in tensors:
                        mark_initialized(tensor)
                dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.get_default_dtype())
                _leave_meta(module, device, dtype)
                # Whatever torch.device a caller is within: buffers are computed in the default one.
                with device:
                    fill_missing(network, module)
            module.eval()
        return modules

    def attach(self, network: PreTrainedModel, modules: Mapping[str, nn.Module]) -> None:
        """Put modules that `make` built into their places."""
        for path, module in modules.items():
            _replace(network, path, module)
        _mark_empty(network)
        self._refuse_saving_with_holes(network)

    def release(self, network: PreTrainedModel, block: int) -> None:
        """Take a block out of the network; a route that still holds its modules keeps them."""
        for path in self.paths(block):
            mode = network.get_submodule(path).training
            _replace(network, path, Vacant(self.role, block, path).train(mode))
        _mark_empty(network)
        self._refuse_saving_with_holes(network)

    def _refuse_saving_with_holes(self, network: PreTrainedModel) -> None:
        # Before it writes a file; `Vacant` would refuse later, and a network of no parameters stop elsewhere.
        network.__dict__.pop("save_pretrained", None)
        for block in range(1, len(self.cuts) + 1):
            if not self.is_resident(network, block):
                network.save_pretrained = partial(raise_incomplete, self.role, block)  # type: ignore[method-assign]
                return

    def _paths_of(self, block: int) -> tuple[str, ...]:
        first, last = block == 1, block == len(self.cuts)
        embedder = self.family.embedder_paths(self.config) if first else ()
        units = units_of_block(self.cuts, block)
        head = self.family.head_paths(self.config) if last else ()
        return (*embedder, *(p for unit in units for p in self.family.unit_paths(self.config, unit)), *head)

    def _build_meta(self) -> PreTrainedModel:
        network = build_skeleton(self.family, self.config)
        if self._specs is None:
            self._specs = self._read_specs(network)
            self._structures = tuple(Structure.of(network, paths) for paths in self._paths)
        self._spare = {path: network.get_submodule(path) for paths in self._paths for path in paths}
        return network

    def _read_specs(self, network: PreTrainedModel) -> tuple[dict[str, TensorSpec], ...]:
        names = checkpoint_names(network)
        state = network.state_dict(keep_vars=True)
        specs = []
        for paths in self._paths:
            prefixes = tuple(f"{path}." for path in paths)
            own = {n: t for n, t in state.items() if n.startswith(prefixes)}
            specs.append(
                {
                    name: TensorSpec(names[name], tuple(t.shape), t.is_floating_point(), isinstance(t, nn.Parameter))
                    for name, t in own.items()
                }
            )
        left = state.keys() - {name for block in specs for name in block}
        if left:
            raise ValueError(
                f"the paths of family {self.family.model_type!r} do not cover tensor {min(left)!r} of "
                f"{type(network).__name__}"
            )
        return tuple(specs)

    def _spare_module(self, path: str) -> nn.Module:
        if path not in self._spare:
            self._build_meta()
        return self._spare.pop(path)


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    network.get_submodule(parent)._modules[name] = module


def _assign(path: str, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Put tensors into their places in a module at `path`; whether none is left on the meta device.

    As `load_state_dict(assign=True)` does it, which looks at each name many times.
    """
    is_whole = True
    for name, part in module.named_modules(prefix=path):
        for places in (part._parameters, part._buffers):
            for leaf, place in places.items():
                tensor = tensors.get(f"{name}.{leaf}")
                if place is None:
                    continue
                if tensor is None:
                    is_whole = is_whole and not place.is_meta
                elif isinstance(place, nn.Parameter):
                    places[leaf] = nn.Parameter(tensor, place.requires_grad)
                else:
                    places[leaf] = tensor
    return is_whole


def _leave_meta(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    empty = torch.empty_like(
                        tensor, device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype
                    )
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty  # type: ignore[assignment]
