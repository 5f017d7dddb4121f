"""What a network is made of, so that what was put into it later is noticed.

Values are compared bit for bit elsewhere; this compares the modules that hold them. An adapter, a quantised layer or
another head is no part of the network that a config describes: it would be lost with its block, and be missing from a
saved repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn


@dataclass(frozen=True)
class Structure:
    """The modules and tensors of a network, or of a part of it.

    Args:
        classes: Path of a module -> the name of its class.
        shapes: Name of a parameter or buffer, persistent or not -> its shape.
    """

    classes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, network: nn.Module, paths: tuple[str, ...] = ("",)) -> Structure:
        """The structure of a network's modules at some paths; of the whole network by default."""
        classes: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            for name, part in _modules(network, path):
                classes[name] = type(part).__name__
                shapes |= {full: tuple(tensor.shape) for full, tensor in _tensors(name, part)}
        return cls(classes, shapes)

    def without(self, paths: tuple[str, ...]) -> Structure:
        """The part that lies neither at nor below some paths."""
        return Structure(
            {path: name for path, name in self.classes.items() if not lies_within(path, paths)},
            {name: shape for name, shape in self.shapes.items() if not lies_within(name, paths)},
        )

    def difference(self, found: Structure) -> str | None:
        """The first thing in which `found` differs from this, in words; None if there is none."""
        for name in found.shapes:
            if name not in self.shapes:
                return f"it holds the tensor {name!r}, which its config does not describe"
        for name, shape in self.shapes.items():
            if name not in found.shapes:
                return f"it lacks the tensor {name!r}"
            if found.shapes[name] != shape:
                return f"{name!r} has shape {list(found.shapes[name])}, by its config {list(shape)}"
        for path, class_name in self.classes.items():
            if found.classes.get(path) != class_name:
                return f"{path!r} is of class {found.classes.get(path)}, by its config {class_name}"
        for path in found.classes.keys() - self.classes.keys():
            return f"it holds the module {path!r}, which its config does not describe"
        return None


def special_tensor(network: nn.Module, paths: tuple[str, ...] = ("",)) -> str | None:
    """The first tensor that is more than its values, such as a quantised or a distributed one, in words, or None."""
    for path in paths:
        for name, tensor in chain.from_iterable(_tensors(*found) for found in _modules(network, path)):
            if type(tensor) not in (nn.Parameter, torch.Tensor):
                return f"{name!r} is a {type(tensor).__name__}"
    return None


def has_accelerate_hooks(network: nn.Module) -> bool:
    """Whether accelerate's hooks run a module: they may keep its weights elsewhere, and move them when it is called."""
    return any("_hf_hook" in vars(module) for module in network.modules())


def hooked_by_others(modules: Iterable[nn.Module]) -> str | None:
    """The class of the first module that runs something of the user's: a hook, or a `forward` of its own.

    Hooks of torch and transformers themselves, such as those that gather hidden states, are not the user's.
    """
    for module in chain.from_iterable(root.modules() for root in modules):
        kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if not any(kinds) and "forward" not in vars(module):
            continue
        hooks = chain.from_iterable(kind.values() for kind in kinds)
        makers = [str(getattr(getattr(hook, "func", hook), "__module__", "")).partition(".")[0] for hook in hooks]
        if "forward" in vars(module) or any(maker not in ("torch", "transformers") for maker in makers):
            return type(module).__name__
    return None


def _modules(network: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    # The layers of a skeleton share what is in them, and each counts.
    return network.get_submodule(path).named_modules(prefix=path, remove_duplicate=False)


def _tensors(path: str, module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters and buffers of a module itself, by full name."""
    for name, tensor in chain(module._parameters.items(), module._buffers.items()):
        if tensor is not None:
            yield f"{path}.{name}" if path else name, tensor


def lies_within(name: str, paths: tuple[str, ...]) -> bool:
    """Whether a module or tensor lies at or below one of some paths."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)
