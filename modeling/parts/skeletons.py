"""Networks on the meta device: modules, names and shapes, built in as little time as can be.

A first answer waits for the student's modules more than for anything else but its own pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


# What layers of torch are filled with at first, in the form in which a mode is told of it.
_FILLING = frozenset(
    {
        init.constant_,
        init.kaiming_normal_,
        init.kaiming_uniform_,
        init.normal_,
        init.uniform_,
        torch.Tensor.fill_,
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.zero_,
    }
)
_DEPTH = "num_hidden_layers"


class Unfilled(TorchFunctionMode):
    """Within it, tensors on the meta device are not filled: they have no values, and a third of the time goes there.

    It holds for the thread that entered it alone: networks that others build meanwhile get their values.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Leave the tensor of a filling function as it is; call any other function."""
        if func in _FILLING:
            tensor: torch.Tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs) if kwargs else func(*args)


def build_skeleton(model_class: type[PreTrainedModel], config: PreTrainedConfig, layers: str | None) -> PreTrainedModel:
    """A network without values, on the meta device.

    Where a family says that its layers are built alike, the first is built and the others are its likenesses.

    Args:
        model_class: Its class.
        config: Its config. The network is made of the object itself.
        layers: The path of the list of its layers, if they are built alike; see `Family`.
    """
    with torch.device("meta"), Unfilled():
        if layers is None or getattr(config, _DEPTH) < 2 or config.is_heterogeneous:
            return model_class(config)
        short = copy.copy(config)
        setattr(short, _DEPTH, 1)
        before = dict(short.__dict__)
        network = model_class(short)
    # What the constructor wrote on its config, such as the attention that it chose, is the real one's.
    after = short.__dict__
    config.__dict__.update({key: value for key, value in after.items() if before.get(key, config) is not value})
    for key in before.keys() - after.keys():
        del config.__dict__[key]
    for part in network.modules():
        if part.__dict__.get("config") is short:
            part.__dict__["config"] = config
    alike = network.get_submodule(layers)
    first = alike.get_submodule("0")
    for number in range(1, getattr(config, _DEPTH)):
        alike.add_module(str(number), _clone_layer(first))
    return network


def _clone_layer(module: nn.Module) -> nn.Module:
    """Another module of the same class and settings, over the same tensors until it is given its own."""
    other = type(module).__new__(type(module))
    own = other.__dict__
    for key, value in vars(module).items():
        # Mostly hooks, of which there are none: a new empty container takes less time than a copy.
        own[key] = value if not isinstance(value, dict | list | set) else value.copy() if value else type(value)()
    own["_modules"] = {name: child if child is None else _clone_layer(child) for name, child in module._modules.items()}
    return other
