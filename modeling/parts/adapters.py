"""Adapters (PEFT) on a PWL model: found, read and saved as transformers does it, from safetensors files alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import MissingFileError, OverwriteError, RepositoryError, SaveError, StageError
from ..repository.layout import MANIFEST_FILE
from ..repository.source import Repository
from .placing import Vacant
from .weights import same_bits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .parts import Parts

Read = TypeVar("Read")

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Where PEFT keeps what it has wrapped.
_WRAPPED = (".base_layer", ".original_module")

# Ways to begin a LoRA that take a part out of the weights under it, and take out the same when it is loaded.
_TAKEN_OUT = ("pissa", "olora")

# DoRA's magnitudes: PEFT saves them under a shorter name than the one that transformers looks for.
_MAGNITUDE = "lora_magnitude_vector"


def base_of(repository: Repository) -> str | None:
    """The model that an adapter is for, by the adapter's repository; None if that holds no adapter.

    Raises:
        RepositoryError: If its config is malformed, or names no model.
    """
    try:
        text = repository.fetch_text(ADAPTER_CONFIG)
    except MissingFileError:
        return None
    try:
        data = json.loads(text)
        base = data["base_model_name_or_path"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise RepositoryError(f"{repository}: {ADAPTER_CONFIG} is not an adapter's config: {error}") from error
    if not isinstance(base, str) or not base:
        raise RepositoryError(
            f"{repository}: {ADAPTER_CONFIG} names no model, base_model_name_or_path is {base!r}: load the model that "
            "it is for, and call load_adapter"
        )
    return base


def open_model(
    name: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None,
    read: Callable[[Repository], Read],
    **options: Any,
) -> tuple[Repository, Read, str | os.PathLike[str] | None]:
    """Open and read a model's repository by its own name, or by that of an adapter for it, as transformers does.

    Args:
        name: A folder or a Hub id, of a model or an adapter.
        adapter: The adapter, if it is known already: `name` is the model's then.
        read: Reads a model's repository.
        options: For `Repository.open`.

    Returns:
        The model's repository, what was read of it, and the adapter's name if there is one.

    Raises:
        RepositoryError: If it is neither a PWL repository nor an adapter.
    """
    repository = Repository.open(name, **options)
    try:
        found = read(repository)
    except MissingFileError:
        base = base_of(repository) if adapter is None else None
        if base is None:
            raise
        repository = Repository.open(base, **{**options, "subfolder": ""})
        return repository, read(repository), name
    # Of a Hub's repository that would be a request more before the first answer.
    if adapter is None and repository.commit is None and repository.local(ADAPTER_CONFIG) is not None:
        return repository, found, name
    return repository, found, adapter


def read_adapter(repository: Repository) -> tuple[Any, dict[str, torch.Tensor]]:
    """An adapter's config, as PEFT reads it, and its tensors.

    Raises:
        ImportError: If PEFT is not installed.
        RepositoryError: If the adapter is not whole; if its weights are no safetensors file.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise ImportError(f"{repository} is an adapter, which needs PEFT: pip install peft") from error
    folder = repository.fetch(ADAPTER_CONFIG).parent
    try:
        config, tensors = PeftConfig.from_pretrained(str(folder)), load_file(repository.fetch(ADAPTER_WEIGHTS))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise RepositoryError(f"{repository} is not an adapter that PEFT can read: {error}") from error
    return config, {f"{n}.weight" if n.endswith(f".{_MAGNITUDE}") else n: t for n, t in tensors.items()}


@contextmanager
def undone_on_error(model: PreTrainedModel) -> Iterator[None]:
    """Take out again what PEFT has put into a model until it failed: it goes from module to module."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    had_adapters, configs = model._hf_peft_config_loaded, dict(getattr(model, "peft_config", {}))
    try:
        yield
    except BaseException:
        for module, found in children:
            module._modules = found
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        # Set by transformers before anything is put in: saving would take the model for its adapter.
        model._hf_peft_config_loaded = had_adapters
        if hasattr(model, "peft_config"):
            model.peft_config = configs
        raise


def refuse_vacancies(parts: Parts, names: Iterable[str]) -> None:
    """Refuse an adapter some of whose tensors belong to blocks that are not resident: they would be dropped.

    Args:
        parts: The model's parts.
        names: The tensors' names, with or without PEFT's `base_model.model.` before them.

    Raises:
        StageError: With the first of them.
    """
    parts.networks.of("teacher")  # not built before it is needed
    for name in names:
        module: torch.nn.Module | None = parts.networks.model
        for part in name.removeprefix("base_model.model.").split("."):
            module = module._modules.get(part) if module is not None else None
            if isinstance(module, Vacant):
                raise StageError(
                    f"the adapter holds {name!r}, for block {module.block} of the {module.role}, which is not "
                    "resident: load the model with keep_all=True"
                )


def refuse_on_low_precision(parts: Parts) -> None:
    """Refuse an adapter that was put on blocks in low precision: it would go with them, and never be on the teacher.

    Raises:
        StageError: With the first of them.
    """
    for part in sorted(part for part in parts.resident() if part.is_low):
        if part.difference() is not None:
            raise StageError(f"the adapter would be on {part}, which is passing by: go to a stage without such blocks")


def refuse_on_shared_embedder(parts: Parts) -> None:
    """Refuse an adapter that was put on the embedder of both networks: merged, it would change the other one's too.

    Raises:
        StageError: With what is there now.
    """
    if (difference := parts.networks.embedder_difference()) is not None:
        raise StageError(
            f"the adapter would be on the embedder that teacher and student share ({difference}): leave it out of the "
            "adapter's target_modules and modules_to_save"
        )


def check_adapter_folder(directory: str | os.PathLike[str]) -> None:
    """Refuse to save an adapter over files that are not an adapter's.

    Raises:
        OverwriteError: If the folder holds a file of that name, and no adapter's config that says whose it is.
    """
    taken = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if os.path.lexists(Path(directory, name))]
    try:
        is_adapter = "peft_type" in json.loads(Path(directory, ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError, TypeError):
        is_adapter = False
    if taken and not is_adapter:
        raise OverwriteError(
            f"{os.fspath(directory)} holds {', '.join(taken)}, and no {ADAPTER_CONFIG} of an adapter; nothing was "
            "written: save into another folder, or give overwrite=True to write over them"
        )


def check_base_is_saved(model: PreTrainedModel, parts: Parts) -> None:
    """Refuse to save an adapter alone where the model under it was never saved as it is.

    What the adapter's own file holds may be another: biases that are trained with it, for one.

    Raises:
        SaveError: If it was not loaded from a repository, or changed since.
    """
    if parts.store is None:
        raise SaveError(
            "only the adapter would be saved, and the model under it is in no repository: save the model before "
            "add_adapter is called, and load it from there"
        )
    tensors, saved = model.state_dict(), set(model.get_adapter_state_dict())
    if getattr(model.peft_config[model.active_adapters()[0]], "init_lora_weights", None) in _TAKEN_OUT:
        saved |= {name for name in tensors if name.endswith(".base_layer.weight")}
    for wrapped in _WRAPPED:
        tensors = {name.replace(wrapped, ""): tensor for name, tensor in tensors.items()}
        saved = {name.replace(wrapped, "") for name in saved}
    for part in sorted(parts.resident()):
        for name, stored in parts.values(part).items():
            # A tied tensor may be in a place other than its first, which names it.
            found = tensors.get(name) if part.modules() else part.tensors().get(name)
            if name in saved:
                continue
            if found is None or not same_bits(found, stored.to(found.device, found.dtype)):
                raise SaveError(
                    f"only the adapter would be saved, and {name} was changed since it was loaded: merge "
                    "the adapter and save the model whole"
                )


def check_adapter_push(
    model: PreTrainedModel,
    parts: Parts,
    repo_id: str,
    *,
    revision: str | None,
    token: str | bool | None,
    overwrite: bool,
) -> None:
    """Refuse to push an adapter to where it does not belong, or over weights of another kind.

    Raises:
        ValueError: If there is a PWL repository.
        OverwriteError: If there are adapter weights that are no adapter's of PEFT, without `overwrite`.
        SaveError: As `check_base_is_saved`.
    """
    api = HfApi(token=token)
    if api.file_exists(repo_id, MANIFEST_FILE, revision=revision):
        raise ValueError(
            f"{repo_id} is a PWL repository, and only the adapter of this model would be pushed: push it to a "
            "repository of its own"
        )
    known = [api.file_exists(repo_id, name, revision=revision) for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)]
    if known == [True, False] and not overwrite:
        raise OverwriteError(
            f"{repo_id} holds {ADAPTER_WEIGHTS}, and no {ADAPTER_CONFIG} of an adapter; nothing was pushed: push to "
            "another repository, or give overwrite=True to write over it"
        )
    check_base_is_saved(model, parts)
