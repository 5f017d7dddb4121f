"""Opening a repository whatever its task, and what its config tells of inputs."""

from __future__ import annotations

import os
from typing import Any

from pwl_hf import modeling
from pwl_hf.modeling import PWLConfig, PWLPreTrainedModel
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.loading import read_config
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.task_names import TASKS

# The task whose samples have a label for each word.
WORDS_TASK = "AutoModelForTokenClassification"


def samples_of(task: str) -> str:
    """What models of a task classify, as `open_split` calls it."""
    return "words" if task == WORDS_TASK else TASKS[task].samples


def class_of(config: PWLConfig, where: str = "the model") -> type[Any]:
    """The class of models of a config's task.

    Args:
        config: The config.
        where: What an error calls the model.

    Raises:
        InputError: If the library has no such task.
    """
    if config.task not in TASKS:
        raise InputError(f"{where} is of task {config.task!r:.100}, which the library does not have")
    found: type[Any] = getattr(modeling, TASKS[config.task].class_name)
    return found


def open_model(name: str | os.PathLike[str], **options: Any) -> PWLPreTrainedModel:
    """A model of any task.

    Args:
        name: A folder or a Hub id.
        options: As in `from_pretrained`.

    Raises:
        InputError: If the library does not have its task.
    """
    own = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
    opened = Repository.open(name, **{key: value for key, value in options.items() if key in own})
    model_class = class_of(read_config(opened, PWLConfig, {}), str(opened))
    model: PWLPreTrainedModel = model_class.from_pretrained(name, **options)
    return model
