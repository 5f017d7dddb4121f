"""The networks of a training: teachers and students from names, configs and sizes."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from pwl_hf.evaluation.labels import check_one_label, labels_of
from pwl_hf.modeling.families.registry import OWN_CONFIGS, family_of
from pwl_hf.modeling.parts import construction
from pwl_hf.modeling.sources import Role
from pwl_hf.modeling.task_names import FIRST_TASK
from pwl_hf.training.networks.network_arguments import NetworkArguments, TeacherArguments
from pwl_hf.training.networks.presets import preset_overrides
from pwl_hf.training.pairs import parse_pairs

logger = logging.getLogger(__name__)

# Of a config, what follows from the rest of it or belongs to one checkpoint.
_NOT_INHERITED = frozenset({"architectures", "dtype", "transformers_version", "pooler_output_size"})


# Lists with an entry for each layer.
_BY_LAYER = ("layer_types", "no_rope_layers")


def read_config(name: str) -> PreTrainedConfig:
    """A config from a JSON file, a folder or the Hub.

    Raises:
        ValueError: If a JSON file names no `model_type` that can be cut.
        OSError: If there is none.
    """
    path = Path(name)
    if path.suffix != ".json":
        return _known_config(name)
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ValueError(f"{path} must be a config with a model_type")
    config = _config_of(**values)
    family_of(config)
    return config


def _known_config(name: str) -> PreTrainedConfig:
    """The config of a folder or Hub id; AutoConfig alone knows none of the user's own families."""
    model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    own = OWN_CONFIGS.get(model_type) if isinstance(model_type, str) else None
    return AutoConfig.from_pretrained(name) if own is None else own.from_pretrained(name)


def _config_of(model_type: str, **values: Any) -> PreTrainedConfig:
    """A config of these values."""
    own = OWN_CONFIGS.get(model_type)
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **values) if own is None else own(**values)
    return config


def derived_config(base: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """A config that differs from another in some values, and in what follows from them.

    Args:
        base: Stays as it is.
        overrides: Field -> value.

    Raises:
        ValueError: For a field that configs of this `model_type` do not have.
        huggingface_hub.errors.StrictDataclassError: For values that cannot be.
    """
    names = [field.name for field in dataclasses.fields(base) if field.init and not field.name.startswith("_")]
    for name in overrides:
        if name not in names or name in _NOT_INHERITED:
            raise ValueError(f"a config of model_type {base.model_type!r} has no {name!r} to be set")
    kept = {name: getattr(base, name) for name in names if name not in _NOT_INHERITED}
    depth = overrides.get("num_hidden_layers")
    for name in _BY_LAYER:
        if depth is not None and isinstance(found := kept.get(name), list) and depth != len(found):
            # Those of the layers that a student takes over from a deeper teacher.
            kept[name] = [found[j * len(found) // depth] for j in range(depth)]
    return type(base)(**(kept | dict(overrides)))


def with_labels(config: PreTrainedConfig, label_names: Sequence[str]) -> PreTrainedConfig:
    """A config with these labels."""
    return derived_config(
        config,
        {"id2label": dict(enumerate(label_names)), "label2id": {name: i for i, name in enumerate(label_names)}},
    )


def fresh(config: PreTrainedConfig, task: str = FIRST_TASK) -> PreTrainedModel:
    """A network of a task with fresh weights.

    Raises:
        ValueError: If its family cannot be cut, or has none for the task.
    """
    return family_of(config).class_for(config, task)(config)


def load_network(
    name: str,
    label_names: Sequence[str] | None,
    *,
    replace_head: bool,
    role: Role = "teacher",
    allow_new_head: bool = False,
    task: str = FIRST_TASK,
) -> PreTrainedModel:
    """A network with its weights, from a folder or the Hub.

    Args:
        name: Folder or Hub id.
        label_names: The labels of the data, if it has any.
        replace_head: Give it a fresh head if its labels are others in number; refuse it otherwise.
        role: For errors.
        allow_new_head: Give it a fresh head also if its checkpoint has none.
        task: The task.

    Raises:
        ValueError: If its family cannot be cut; if it has another number of labels, or does not choose one of several.
        RepositoryError: If its checkpoint lacks tensors, has some that would be lost, or holds NaN or infinity.
    """
    config = _known_config(name)
    family_of(config)
    # Whatever dtype it is stored in: it is trained, or trained with, in full precision.
    options: dict[str, Any] = {"dtype": torch.float32}
    if label_names is None or config.num_labels == len(label_names):
        check_one_label(config, repr(name))
        return construction.load_network(role, name, task, allow_new_head=allow_new_head, **options)
    if not replace_head:
        raise ValueError(
            f"{name!r} has {config.num_labels} labels, the data has {len(label_names)}: fine-tune it with "
            "train_teacher.py first"
        )
    logger.info("%s has %d labels, the data %d: its head is fresh", name, config.num_labels, len(label_names))
    # What the old head was trained for says nothing of the new one.
    options["config"] = derived_config(with_labels(config, label_names), {"problem_type": None})
    return construction.load_network(
        role, name, task, allow_new_head=allow_new_head, allow_resized_head=True, **options
    )


def teacher_config(arguments: TeacherArguments) -> PreTrainedConfig:
    """The config of the network that `train_teacher.py` is to train, with labels of its own.

    Raises:
        ValueError: For overrides that the family does not have.
    """
    if arguments.model is not None:
        return _known_config(arguments.model)
    base = _config_of(str(arguments.model_type)) if arguments.config is None else read_config(arguments.config)
    return derived_config(base, parse_pairs(arguments.config_overrides or (), "config_overrides"))


def new_teacher(arguments: TeacherArguments, label_names: Sequence[str], task: str = FIRST_TASK) -> PreTrainedModel:
    """The network that `train_teacher.py` is to train: one to fine-tune, or one with fresh weights.

    Raises:
        ValueError: For overrides that the family does not have; as `load_network`.
    """
    if arguments.model is not None:
        allowed = arguments.allow_new_head
        return load_network(arguments.model, label_names, replace_head=True, allow_new_head=allowed, task=task)
    return fresh(with_labels(teacher_config(arguments), label_names), task)


def new_student(
    arguments: NetworkArguments,
    teacher: PreTrainedConfig,
    label_names: Sequence[str] | None,
    task: str = FIRST_TASK,
) -> PreTrainedModel:
    """The student that the options ask for, with fresh weights unless it is a folder or on the Hub.

    Args:
        arguments: The options.
        teacher: The teacher's config: what the student's is derived from, and whose labels it has.
        label_names: The labels of the data, if it has any.
        task: The task.

    Raises:
        ValueError: For an unknown preset, or overrides that the family does not have or that do not go with weights.
    """
    overrides = parse_pairs(arguments.student_config_overrides or (), "student_config_overrides")
    name = arguments.student
    if name is not None and not name.endswith(".json"):
        if overrides:
            raise ValueError(f"student_config_overrides do not go with the weights of {name!r}: leave one out")
        allowed = arguments.allow_new_head
        return load_network(name, label_names, replace_head=True, role="student", allow_new_head=allowed, task=task)
    if name is not None:
        base = read_config(name)
    elif arguments.student_preset is not None:
        base = derived_config(teacher, preset_overrides(arguments.student_preset, teacher))
    else:
        base = teacher
    return fresh(with_labels(derived_config(base, overrides), labels_of(teacher)), task)
