"""What a network is made of, so that what was put into it later is noticed.

Values are compared bit for bit elsewhere; this compares the modules that hold them. An adapter, a quantised layer or
another head is no part of the network that a config describes: it would be lost with its block, and be missing from a
saved repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
            module = network.get_submodule(path)
            classes |= {
                name: type(part).__name__ for name, part in module.named_modules(prefix=path, remove_duplicate=False)
            }
            shapes |= {name: tuple(tensor.shape) for name, tensor in _tensors(module, path)}
        return cls(classes, shapes)

    def within(self, paths: tuple[str, ...]) -> Structure:
        """The part that lies at or below some paths."""
        return self._part(lambda name: _lies_within(name, paths))

    def without(self, paths: tuple[str, ...]) -> Structure:
        """The part that does not."""
        return self._part(lambda name: not _lies_within(name, paths))

    def _part(self, belongs: Callable[[str], bool]) -> Structure:
        return Structure(
            {path: name for path, name in self.classes.items() if belongs(path)},
            {name: shape for name, shape in self.shapes.items() if belongs(name)},
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
        for name, tensor in _tensors(network.get_submodule(path), path):
            if type(tensor) not in (nn.Parameter, torch.Tensor):
                return f"{name!r} is a {type(tensor).__name__}"
    return None


def hooked_module(network: nn.Module) -> str | None:
    """The path of the first module that accelerate's hooks run, None if there is none.

    They keep weights elsewhere, and move them when the module is called.
    """
    return next((path for path, module in network.named_modules() if hasattr(module, "_hf_hook")), None)


def hooked_by_others(modules: Iterable[nn.Module]) -> str | None:
    """The class of the first module that runs something of the user's: a hook, or a `forward` of its own.

    Hooks of torch and transformers themselves, such as those that gather hidden states, are not the user's.
    """
    for module in chain.from_iterable(root.modules() for root in modules):
        kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        hooks = chain.from_iterable(kind.values() for kind in kinds)
        makers = [str(getattr(getattr(hook, "func", hook), "__module__", "")).partition(".")[0] for hook in hooks]
        if "forward" in vars(module) or any(maker not in ("torch", "transformers") for maker in makers):
            return type(module).__name__
    return None


def _tensors(module: nn.Module, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    # The layers of a skeleton share their tensors, and each counts.
    return chain(
        module.named_parameters(path, remove_duplicate=False), module.named_buffers(path, remove_duplicate=False)
    )


def _lies_within(name: str, paths: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
