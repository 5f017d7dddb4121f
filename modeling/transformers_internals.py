"""Every use of transformers that its documentation does not promise.

Each is pinned by a test in `tests/modeling/test_transformers_internals.py`, which says what to look at when a new
version changes it. Nothing else in this library imports a private name of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

import torch
import transformers
from transformers.configuration_utils import SubConfigSpec
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import kaiming_normal_, kaiming_uniform_, ones_, uniform_, zeros_

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

__all__ = [
    "SubConfigSpec",
    "attention_of",
    "checkpoint_names",
    "choose_attention",
    "class_of_task",
    "copy_checkpointing",
    "fill_missing",
    "is_activation",
    "kaiming_normal_",
    "kaiming_uniform_",
    "mark_initialized",
    "ones_",
    "tasks_of",
    "tied_names",
    "uniform_",
    "zeros_",
]


def attention_of(config: PreTrainedConfig) -> str | dict[str, str] | None:
    """The attention implementation that a config asks for, None if nothing was chosen yet."""
    found: str | dict[str, str] | None = config._attn_implementation
    return found


def choose_attention(config: PreTrainedConfig, attn_implementation: str | dict[str, str] | None) -> None:
    """Let a config, and those within it, ask for an attention implementation, before a model is made of it.

    Args:
        config: The config.
        attn_implementation: As in transformers' `from_pretrained`; a dict chooses for the configs within, by name.
    """
    config._attn_implementation = attn_implementation


def class_of_task(config: PreTrainedConfig, task: str) -> type[PreTrainedModel]:
    """The class that transformers has for a config and a task, which is named by its Auto class.

    The first of several: LeViT has a second, with two heads.

    Raises:
        ValueError: If it has none.
    """
    mapping = getattr(transformers, task)._model_mapping
    if type(config) not in mapping:
        raise ValueError(f"transformers has no network of model_type {config.model_type!r} for {task}")
    classes = mapping[type(config)]
    found: type[PreTrainedModel] = classes[0] if isinstance(classes, tuple) else classes
    return found


def tasks_of(config: PreTrainedConfig, tasks: Iterable[str]) -> list[str]:
    """The tasks among some, each named by its Auto class, that the networks of a config are of.

    Those whose class the config names, or else all that have a class for it.
    """
    mappings = {task: getattr(transformers, task)._model_mapping for task in tasks}
    found = {task: mapping[type(config)] for task, mapping in mappings.items() if type(config) in mapping}
    # Some have several: DeiT a class with a second head.
    classes = {task: network if isinstance(network, tuple) else (network,) for task, network in found.items()}
    given = set(config.architectures or ())
    return [t for t, own in classes.items() if given & {network.__name__ for network in own}] or list(found)


def is_activation(name: str) -> bool:
    """Whether transformers has an activation of this name."""
    from transformers.activations import ACT2FN

    return name in ACT2FN


def checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """The name that transformers gives each tensor of a model in a checkpoint.

    In memory the names follow the current code, on disk those of the first release (`vit.layers.0` is
    saved as `vit.encoder.layer.0`). transformers' own conversion is run on the state dict, and tensors
    are followed through it by identity.

    Args:
        model: A model that was built from a config, on any device (its tensors are not read).

    Returns:
        In-memory name -> checkpoint name, for every persistent tensor.

    Raises:
        NotImplementedError: If the conversion does more than rename.
    """
    state = model.state_dict()
    # Layers of one kind are named alike: how the first and the last of them are converted tells it of all.
    alike: dict[str, list[str]] = {}
    for name in state:
        alike.setdefault(_without_numbers(name), []).append(name)
    ends = {name for names in alike.values() for name in (names[0], names[-1])}
    known = _converted(model, {name: tensor for name, tensor in state.items() if name in ends})
    names = {
        name: _with_numbers(known[of_one_kind[0]], of_one_kind[0], name)
        for of_one_kind in alike.values()
        for name in of_one_kind
    }
    if any(names[name] != converted for name, converted in known.items()):
        return _converted(model, state)
    return {name: names[name] for name in state}


def _converted(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> dict[str, str]:
    name_of = {id(tensor): name for name, tensor in state.items()}
    saved = revert_weight_conversion(model, dict(state))
    names = {name_of[id(tensor)]: name for name, tensor in saved.items() if id(tensor) in name_of}
    if len(names) != len(state):
        lost = sorted(state.keys() - names.keys())[0]
        raise NotImplementedError(
            f"{type(model).__name__} is saved with more than renamed tensors ({lost!r} is one); such a network "
            "cannot be cut into shards"
        )
    return names


def _without_numbers(name: str) -> str:
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def _with_numbers(converted: str, known: str, name: str) -> str:
    """What `name` is converted to, if `known`, which differs in its numbers alone, is converted to `converted`."""
    places = [place for place in known.split(".") if place.isdigit()]
    parts = converted.split(".")
    if [part for part in parts if part.isdigit()] != places:
        return converted
    own = iter([place for place in name.split(".") if place.isdigit()])
    return ".".join(next(own) if part.isdigit() else part for part in parts)


def tied_names(model: PreTrainedModel) -> dict[str, str]:
    """The tied tensors of a model: the in-memory name of each place but the first -> that of the first."""
    found: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return dict(found)


def mark_initialized(tensor: torch.Tensor) -> None:
    """Tell transformers' weight initialisation to leave a tensor alone."""
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]


def fill_missing(network: PreTrainedModel, module: nn.Module) -> None:
    """Fill the tensors of `module` that no checkpoint holds, as `network` initialises them.

    Tensors marked by `mark_initialized` keep their values. Used for buffers that are computed and not
    saved, such as Swin's `relative_position_index`, and for heads of another size.

    Args:
        network: The model whose initialisation is used.
        module: A module of it, with no tensor on the meta device.
    """
    with torch.no_grad():
        for part in module.modules():
            network._init_weights(part)


def copy_checkpointing(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Give the layers in `modules` the activation checkpointing that the layers in `model` have."""
    layer = next((m for m in model.modules() if hasattr(m, "gradient_checkpointing")), None)
    if layer is None or not hasattr(layer, "_gradient_checkpointing_func"):
        return
    for part in chain.from_iterable(module.modules() for module in modules):
        if hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = layer.gradient_checkpointing
            part._gradient_checkpointing_func = layer._gradient_checkpointing_func  # type: ignore[assignment]
