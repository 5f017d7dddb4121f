"""Making a PWL model out of two networks that exist already."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from .configuration_pwl import PWLConfig
from .families import FAMILIES, OWN_CONFIGS, family_of
from .sources import Role

Network = PreTrainedModel | str | os.PathLike[str]


def load_network(role: Role, network: Network, **kwargs: Any) -> PreTrainedModel:
    """A network that is a model, a folder or a Hub id, as a model.

    Args:
        role: For the error.
        network: The model itself (used, not copied), or what to load.
        kwargs: For `from_pretrained`.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(network, PreTrainedModel):
        if kwargs:
            raise TypeError(f"{role}_{next(iter(kwargs))} was given, but the {role} is a model already: leave it out")
        return network
    if not isinstance(network, str | os.PathLike):
        raise TypeError(f"the {role} must be a model, a folder or a Hub id, got {type(network).__name__}")
    model_type = PreTrainedConfig.get_config_dict(network, **_hub_arguments(kwargs))[0].get("model_type")
    if model_type in OWN_CONFIGS:
        return FAMILIES[model_type].model_class().from_pretrained(network, **kwargs)
    return AutoModelForImageClassification.from_pretrained(network, **kwargs)


def joined_config(teacher: PreTrainedModel, student: PreTrainedModel, **kwargs: Any) -> PWLConfig:
    """The config of a PWL model of two networks; their own config objects become its parts, with its problem type.

    Raises:
        huggingface_hub.errors.StrictDataclassError: If they cannot be joined.
        TypeError: If one is not its family's image classifier.
        ValueError: If both are one object.
    """
    if teacher is student:
        raise ValueError("teacher and student are the same model object: give a copy.deepcopy of it as one of them")
    config = PWLConfig(teacher_config=teacher.config, student_config=student.config, **kwargs)
    expected = family_of(teacher.config).model_class()
    for role, network in (("teacher", teacher), ("student", student)):
        # By name too: a class from remote code is not the same object.
        if not isinstance(network, expected) and type(network).__name__ != expected.__name__:
            raise TypeError(f"the {role} must be a {expected.__name__}, got {type(network).__name__}")
        network.config.architectures = [type(network).__name__]
        network.config.problem_type = config.problem_type or network.config.problem_type
    return config


def common_dtype(teacher: PreTrainedModel, student: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Cast both networks to `dtype`; without one, refuse networks of different dtypes.

    Raises:
        ValueError: With both dtypes.
    """
    if dtype is not None:
        teacher.to(dtype=dtype)  # type: ignore[call-arg]
        student.to(dtype=dtype)  # type: ignore[call-arg]
    found = {
        role: {p.dtype for p in network.parameters()} for role, network in (("teacher", teacher), ("student", student))
    }
    if len(found["teacher"] | found["student"]) != 1:
        names = {role: ", ".join(sorted(map(str, dtypes))) for role, dtypes in found.items()}
        raise ValueError(
            f"teacher and student must have one dtype, got {names['teacher']} for the teacher and {names['student']} "
            "for the student: give dtype="
        )


def _hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}
