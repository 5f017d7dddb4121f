"""Which task a run is of, and the options that other tasks have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from pwl_hf import modeling
from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.families.base import PATCHES
from pwl_hf.modeling.families.built_in import FAMILIES
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.task_names import FIRST_TASK, TASKS
from pwl_hf.modeling.transformers_internals import tasks_of
from pwl_hf.opening import samples_of

# By what is classified, the options that are of no other samples.
_TEXTS = {"text_column", "max_length", "tokenizer"}
_OPTIONS = {
    "images": {"image_column", "image_size", "augmentation", "augmentation_overrides", "mixup_alpha", "ig_probability"},
    "texts": _TEXTS | {"text_pair_column"},
    "words": _TEXTS,
    "sounds": {"audio_column", "sampling_rate"},
}
# Those that change pixels where they lie, or say how many there are.
_OF_PIXELS = {"image_size", "augmentation", "augmentation_overrides", "mixup_alpha", "ig_probability"}


def task_of(given: str | None, config: PreTrainedConfig | None, name: str) -> str:
    """The task of a run, by its Auto class.

    Args:
        given: The name of a pipeline, or None for what the config says.
        config: The config of the teacher, or of a PWL model; None if there is none yet.
        name: What an error calls the network.

    Raises:
        ValueError: If the network is of another task, or may be of several.
    """
    named = {task.pipeline: auto_class for auto_class, task in TASKS.items()}
    own = getattr(config, "task", None)
    if own in TASKS:
        found = [own]
    else:
        found = tasks_of(config, TASKS) if config is not None and config.model_type in FAMILIES else []
    if given is not None:
        if own in TASKS and own != named[given]:
            raise ValueError(f"{name} is of {TASKS[own].pipeline}, and task is {given}: leave it out")
        return named[given]
    if len(found) > 1:
        names = ", ".join(TASKS[task].pipeline for task in found)
        raise ValueError(f"{name} can be of several tasks: give task as one of {names}")
    return found[0] if found else FIRST_TASK


def class_of_task(task: str) -> type[PWLPreTrainedModel]:
    """The class of PWL models of a task."""
    found: type[PWLPreTrainedModel] = getattr(modeling, TASKS[task].class_name)
    return found


def refuse_other_options(task: str, parts: Sequence[Any]) -> None:
    """Refuse options that mean nothing for a task, before anything is loaded.

    Args:
        task: The task.
        parts: The dataclasses of the options.

    Raises:
        ValueError: For the first one that is not at its default.
    """
    own = _OPTIONS[samples_of(task)]
    for part in parts:
        for option in dataclasses.fields(part):
            of = [samples for samples, names in _OPTIONS.items() if option.name in names]
            if not of or option.name in own or getattr(part, option.name) == option.default:
                continue
            raise ValueError(
                f"{option.name} is for {' and '.join(of)}, and the task is {TASKS[task].pipeline}, of "
                f"{samples_of(task)}: leave it out"
            )


def refuse_options_of_pixels(config: PreTrainedConfig, parts: Sequence[Any]) -> None:
    """Refuse options that are for whole images, for a network that takes patches of images of any shape.

    Args:
        config: The network's config.
        parts: The dataclasses of the options.

    Raises:
        ValueError: For the first one that is not at its default.
    """
    if family_of(config).takes != PATCHES:
        return
    for part in parts:
        for option in dataclasses.fields(part):
            if option.name in _OF_PIXELS and getattr(part, option.name) != option.default:
                raise ValueError(
                    f"{option.name} is for whole images, and a {config.model_type} takes patches of images, as its "
                    "image processor cuts them: leave it out"
                )
