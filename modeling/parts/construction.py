"""Making a PWL model out of two networks that exist already."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..configuration_pwl import PWLConfig, skip_no_layers
from ..errors import RepositoryError
from ..families.built_in import FAMILIES, OWN_CONFIGS, family_of
from ..finite import first_not_finite
from ..sources import Role

logger = logging.get_logger(__name__)

Network = PreTrainedModel | str | os.PathLike[str]


def load_network(
    role: Role,
    network: Network,
    task: str,
    *,
    allow_new_head: bool = False,
    allow_resized_head: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A network that is a model, a folder or a Hub id, as a model with all its weights from there.

    transformers draws at random what a checkpoint lacks, and drops tensors that it does not know, with only a line in a
    log. Here that is refused; to load such a checkpoint on purpose, load it with transformers and give the model.

    Args:
        role: For the error.
        network: The model itself (used, not copied), or what to load.
        task: The Auto class that loads it.
        allow_new_head: Draw a head at random if the checkpoint has none, or one of another shape; a warning says so.
        allow_resized_head: The same, but only for one of another shape.
        kwargs: For `from_pretrained`. With `ignore_mismatched_sizes=True`, tensors of other shapes are drawn at random;
            a warning names them.

    Raises:
        TypeError: If it is none of these.
        RepositoryError: If the checkpoint is not the network's, or holds NaN or infinity; with the tensors' names.
    """
    if isinstance(network, PreTrainedModel):
        if kwargs:
            raise TypeError(f"{role}_{next(iter(kwargs))} was given, but the {role} is a model already: leave it out")
        return network
    if not isinstance(network, str | os.PathLike):
        raise TypeError(f"the {role} must be a model, a folder or a Hub id, got {type(network).__name__}")
    model_type = PreTrainedConfig.get_config_dict(network, **hub_arguments(kwargs))[0].get("model_type")
    auto_class: Any = getattr(transformers, task)
    if model_type not in FAMILIES:
        # Joining it is refused, and the error there says why.
        return auto_class.from_pretrained(network, **kwargs)
    loader = FAMILIES[model_type].model_class() if model_type in OWN_CONFIGS else auto_class
    resize = kwargs.pop("ignore_mismatched_sizes", False)
    # Other shapes pass here, to be named with all else that is wrong.
    found: Any = loader.from_pretrained(network, **kwargs, ignore_mismatched_sizes=True, output_loading_info=True)
    loaded: PreTrainedModel = found[0]
    info: dict[str, Any] = found[1]
    where = f"the {role} {os.fspath(network)!r}"
    heads = tuple(f"{path}." for path in family_of(loaded.config).classifier_paths(loaded.config))
    _check_loaded(
        where,
        loaded,
        info,
        heads,
        may_lack=heads if allow_new_head else (),
        may_resize=("",) if resize else heads if allow_new_head or allow_resized_head else (),
    )
    if (name := first_not_finite(loaded.state_dict().items())) is not None:
        raise RepositoryError(f"{where}: {name!r} holds NaN or infinity: give a sound checkpoint")
    return loaded


def _check_loaded(
    where: str,
    network: PreTrainedModel,
    info: Mapping[str, Any],
    heads: tuple[str, ...],
    *,
    may_lack: tuple[str, ...],
    may_resize: tuple[str, ...],
) -> None:
    """Refuse a network that is not its checkpoint, by what `from_pretrained` says of the load.

    Args:
        where: The network, for the error.
        network: What was loaded.
        info: What `from_pretrained` said of it.
        heads: What the names of the head's tensors begin with.
        may_lack: What the names of tensors begin with that the checkpoint need not have.
        may_resize: The same, of those that may have another shape there.
    """
    # 1. What is random now. A count of batches is read by nothing that the families have.
    missing = {name for name in info["missing_keys"] if not name.endswith("num_batches_tracked")}
    shapes = {name: f"{name} {list(stored)}, not {list(own)}" for name, stored, own in info["mismatched_keys"]}
    # 2. Less what may be.
    absent = {name for name in missing if not name.startswith(may_lack)}
    resized = {name for name in shapes if not name.startswith(may_resize)}
    lost = _lost(network, info["unexpected_keys"])
    if not absent and not resized and not lost:
        if drawn := missing | shapes.keys():
            logger.warning("%s: drawn at random, not from the checkpoint, and to be trained: %s", where, _some(drawn))
        return
    # 3. All that is wrong, in one message.
    problems = []
    if absent:
        problems.append(f"it lacks {_some(absent)}, which would be random")
    if resized:
        problems.append(f"it has another shape of {_some(shapes[name] for name in resized)}")
    if lost:
        problems.append(f"the network has no place for its {_some(lost)}")
    if unused := set(info["unexpected_keys"]) - lost:
        problems.append(f"not used: {_some(unused)}")
    advice = "give a whole checkpoint of the task, or load it with transformers and give the model"
    if not lost and all(name.startswith(heads) for name in absent | resized):
        advice = (
            "fine-tune the network on the labels first; if the head is to be trained afterwards, give "
            "allow_new_head=True (on a command line --allow-new-head)"
        )
    raise RepositoryError(f"{where} is not what its checkpoint holds: {'; '.join(problems)}: {advice}")


def _lost(network: PreTrainedModel, unexpected: Iterable[str]) -> set[str]:
    """Tensors of a checkpoint that belong into parts that the network has: an adapter's, scales, further layers."""
    family, config = family_of(network.config), network.config
    parts = {*family.embedder_paths(config), *family.head_paths(config)} & {name for name, _ in network.named_modules()}
    parts |= {path for path, module in network.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)}
    # What a network makes by itself was saved by older releases; a mask token is for pretraining alone.
    made = {name for name, _ in network.named_buffers()}
    return {
        name
        for name in unexpected
        if name.startswith(tuple(f"{path}." for path in parts))
        and name not in made
        and not name.endswith(("mask_token", "num_batches_tracked"))
    }


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def joined_config(teacher: PreTrainedModel, student: PreTrainedModel, task: str, **kwargs: Any) -> PWLConfig:
    """The config of a PWL model of two networks; their own config objects become its parts, with its problem type.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If they cannot be joined.
        TypeError: If one is not its family's network for the task.
        ValueError: If both are one object.
    """
    if teacher is student:
        raise ValueError("teacher and student are the same model object: give a copy.deepcopy of it as one of them")
    config = PWLConfig(teacher_config=teacher.config, student_config=student.config, task=task, **kwargs)
    for role, network in (("teacher", teacher), ("student", student)):
        expected = family_of(network.config).class_for(network.config, task)
        # By name too: a class from remote code is not the same object.
        if not isinstance(network, expected) and type(network).__name__ != expected.__name__:
            raise TypeError(f"the {role} must be a {expected.__name__}, got {type(network).__name__}")
        network.config.architectures = [type(network).__name__]
        network.config.problem_type = config.problem_type or network.config.problem_type
    skip_no_layers(student.config)
    for module in student.modules():
        if "layerdrop" in vars(module):
            module.layerdrop = 0.0  # type: ignore[assignment]
    return config


@torch.no_grad()
def cast(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast parameters, and buffers that are saved, as `from_pretrained` does it: tables of positions stay precise."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to(dtype)


def check_common_dtype(teacher: PreTrainedModel, student: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Refuse networks that cannot be cast to `dtype`; without one, networks of different dtypes.

    Raises:
        ValueError: With both dtypes; or with a tensor whose values `dtype` cannot hold.
    """
    if dtype is not None:
        for role, network in (("teacher", teacher), ("student", student)):
            if (name := first_not_finite(_floating(network))) is not None:
                raise ValueError(f"the {role}'s {name!r} holds NaN or infinity: give a sound network")
            if (name := first_not_finite((n, t.to(dtype)) for n, t in _floating(network))) is not None:
                raise ValueError(f"the {role}'s {name!r} would hold NaN or infinity in {dtype}: give another dtype")
        return
    found = {
        role: {p.dtype for p in network.parameters()} for role, network in (("teacher", teacher), ("student", student))
    }
    if len(found["teacher"] | found["student"]) != 1:
        names = {role: ", ".join(sorted(map(str, dtypes))) for role, dtypes in found.items()}
        raise ValueError(
            f"teacher and student must have one dtype, got {names['teacher']} for the teacher and {names['student']} "
            "for the student: give dtype="
        )


def _floating(network: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, tensor) for name, tensor in network.state_dict().items() if tensor.is_floating_point())


def hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments of `from_pretrained` that say where on the Hub something is."""
    names = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}
