"""Modules and parameters in their places in a network, and what stands where nothing is resident."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..errors import StageError
from ..sources import Role


class Vacant(nn.Module):
    """Stands where a released or not yet loaded module belongs.

    Args:
        role: The network it stands in.
        block: The block (from 1) it belongs to.
        path: Its path in that network.
        settings: Plain attributes of that module, such as its kind of attention: its network may ask for them.
    """

    def __init__(self, role: Role, block: int, path: str, settings: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__()
        self.__dict__.update(settings)
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


def raise_incomplete(role: Role, block: int, *args: object, **kwargs: object) -> None:
    """Stands for `save_pretrained` of a network while a block is missing.

    Raises:
        StageError: Always.
    """
    raise StageError(
        f"block {block} of the {role} is not resident, so the {role} alone has no complete state dict: save the PWL "
        "model, or load it with keep_all=True"
    )


class Held(nn.Module):
    """A parameter that is about to be given to modules."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter


def as_parameter(given: dict[str, torch.Tensor], name: str) -> nn.Parameter:
    """A tensor of `given` as a parameter, which it is from then on."""
    found = given[name]
    if not isinstance(found, nn.Parameter):
        found = given[name] = nn.Parameter(found)
    return found


def is_there(network: nn.Module, path: str) -> bool:
    """Whether a network has a module at a path, and it is resident."""
    module: nn.Module | None = network
    for step in path.split("."):
        module = module._modules.get(step) if module is not None else None
    return module is not None and not isinstance(module, Vacant)


def put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path of a network, or the parameter that a `Held` has."""
    parent, _, name = path.rpartition(".")
    if isinstance(module, Held):
        network.get_submodule(parent)._parameters[name] = module.parameter
    else:
        network.get_submodule(parent)._modules[name] = module


def keep_within(vacant: Vacant, module: nn.Module, path: str) -> None:
    """Keep one module of a module that is released, within bare copies of what holds it."""
    parent: nn.Module = vacant
    *above, name = path.split(".")
    for step in above:
        module = module.get_submodule(step)
        bare = copy.copy(module)
        bare.__dict__.update(_parameters={}, _modules={})
        parent._modules[step] = bare
        parent = bare
    parent._modules[name] = module.get_submodule(name)


def take_out(network: nn.Module, name: str) -> None:
    """Take a parameter out of the module that has it, which has None there then."""
    path, _, leaf = name.rpartition(".")
    network.get_submodule(path)._parameters[leaf] = None


def assign(path: str, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> bool:
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
                    tied = isinstance(tensor, nn.Parameter)
                    places[leaf] = tensor if tied else nn.Parameter(tensor, place.requires_grad)
                else:
                    places[leaf] = tensor
    return is_whole


def leave_meta(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Give tensors on the meta device memory, floating ones in a dtype, or in their own."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_meta:
                    own = dtype is None or not tensor.is_floating_point()
                    empty = torch.empty_like(tensor, device=device, dtype=tensor.dtype if own else dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty  # type: ignore[assignment]
