"""What `from_pretrained` accepts, and how its arguments are understood, before anything is loaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from transformers import PreTrainedConfig

from .bounds import check_document
from .errors import RepositoryError
from .repository.layout import CONFIG_FILE, MANIFEST_FILE
from .repository.manifest import Manifest
from .repository.source import Repository
from .repository.verification import stamp_of
from .sources import ROLE_OF, Role
from .transformers_internals import attention_of

Config = TypeVar("Config", bound=PreTrainedConfig)

# Arguments of transformers' from_pretrained that cannot hold for a model that grows, and why.
_REFUSED = {
    "quantization_config": "the last stage is the teacher bit for bit",
    "tp_plan": "a PWL model lives on one device",
    "tp_size": "a PWL model lives on one device",
    "device_mesh": "a PWL model lives on one device",
    "distributed_config": "a PWL model lives on one device",
    "max_memory": "a PWL model lives on one device",
    "offload_folder": "a PWL model keeps only its current route in memory as it is",
    "offload_buffers": "a PWL model keeps only its current route in memory as it is",
    "variant": "a PWL repository has one set of weights",
    "gguf_file": "a PWL repository holds safetensors files",
    "state_dict": "the weights come from the repository; call load_state_dict on a model loaded with keep_all=True",
    "key_mapping": "a PWL repository has fixed names",
    "fusion_config": "the last stage is the teacher bit for bit",
    "kernel_config": "the last stage is the teacher bit for bit",
    "use_kernels": "the last stage is the teacher bit for bit",
    "proxies": "huggingface_hub takes proxies from the environment",
    "num_blocks": "a repository is cut into blocks already",
    "num_stages": "a repository has its own stages; call set_schedule for others",
    "teacher_cuts": "a repository is cut into blocks already",
    "student_cuts": "a repository is cut into blocks already",
}
# Attention that runs without code from the Hub; others may fetch a kernel.
_LOCAL_ATTENTION = ("eager", "sdpa", "flex_attention")
# Arguments that transformers passes for itself, or that change nothing here.
_IGNORED = (
    "trust_remote_code",
    "code_revision",
    "weights_only",
    "low_cpu_mem_usage",
    "tqdm_class",
    "_from_auto",
    "_from_pipeline",
    "_commit_hash",
)
NO_ATTENTIONS = (
    "output_attentions=True does not apply to a PWL model, whose blocks give features only: leave it out, and ask "
    "model.teacher or model.student of a model loaded with keep_all=True"
)


def refuse_attentions(config: PreTrainedConfig) -> None:
    """Refuse a config that asks for attention maps, rather than answer without them.

    Raises:
        ValueError: If it does.
    """
    if config.output_attentions:
        raise ValueError(NO_ATTENTIONS)


def check_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that are left for the config.

    Raises:
        ValueError: For an argument that a PWL model cannot honour, by name.
    """
    for name, reason in _REFUSED.items():
        if kwargs.get(name):
            raise ValueError(f"{name} does not apply to a PWL model: {reason}; leave it out")
    if kwargs.get("use_safetensors") is False:
        raise ValueError("use_safetensors=False does not apply to a PWL model: only safetensors files are read")
    if kwargs.get("output_attentions"):
        raise ValueError(NO_ATTENTIONS)
    known = {*_REFUSED, *_IGNORED, "use_safetensors"}
    return {name: value for name, value in kwargs.items() if name not in known}


def device_of(device_map: Any) -> torch.device:
    """The one device that a `device_map` means.

    Args:
        device_map: None (the default device), a device, its name or index, `"auto"` (the first accelerator,
            or the CPU), or a dict with one value.

    Raises:
        ValueError: If it spreads the model over several devices or onto disk.
    """
    if isinstance(device_map, dict):
        devices = set(map(str, device_map.values()))
        if len(devices) != 1:
            raise ValueError(
                f"device_map must resolve to one device for a PWL model, got {sorted(devices)}; give {{'': device}}"
            )
        device_map = next(iter(device_map.values()))
    if device_map is None:
        device = torch.get_default_device()
        if device.type == "meta":
            raise RuntimeError(
                "this was called within torch.device('meta'), where weights have no values: leave the block, or build "
                "an empty model of a config"
            )
        return device
    if device_map == "disk":
        raise ValueError("device_map='disk' does not apply to a PWL model: it keeps only its current route in memory")
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        # A build for CUDA names it also where there is none.
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return torch.device(device_map)


def dtype_of(dtype: Any, stored: torch.dtype) -> torch.dtype:
    """The floating dtype that a `dtype` argument means; None and `"auto"` mean the stored one.

    Raises:
        ValueError: If it is no floating dtype.
    """
    if dtype is None or dtype == "auto":
        return stored
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating torch dtype, its name or 'auto', got {dtype!r}")
    return found


def check_keep(keep: Collection[Role]) -> frozenset[Role]:
    """The networks that `keep` names.

    Raises:
        ValueError: For another name, or a string in place of a collection.
    """
    if isinstance(keep, str) or not isinstance(keep, Collection) or any(n not in ROLE_OF.values() for n in keep):
        raise ValueError(f'keep must be a collection of "student" and "teacher", such as ("student",), got {keep!r}')
    return frozenset(keep)


def read_repository(
    repository: Repository,
    config_class: type[Config],
    overrides: Mapping[str, Any],
    config: Config | None = None,
    *,
    any_attention: bool = False,
) -> tuple[Manifest, Config]:
    """The manifest and the config of a repository, of one save.

    Args:
        repository: The repository.
        config_class: The config's class.
        overrides: The caller's changes to the config.
        config: A config of the caller's to use in place of the repository's; it is copied.
        any_attention: Whether the caller has named the attention, or trusts the repository's code.

    Raises:
        RepositoryError: If one of them is malformed, or they are of different saves; if the caller's config was read
            from a damaged file of the cache.
        TypeError: If an override is not an attribute of the config.
    """
    is_own = config is not None and config.name_or_path != repository.name
    if config is not None and not is_own:
        # As transformers' Auto classes read it, which compare it with nothing.
        _check_config_file(repository)
    for again in (True, False):
        manifest = repository.manifest()
        # The caller's own object stays as it is.
        found = read_config(repository, config_class, overrides) if config is None else copy.deepcopy(config)
        if found.fingerprint in (None, manifest.fingerprint):
            if not is_own and not any_attention:
                _refuse_kernels(repository, found)
            return manifest, found
        # Each may be what the Hub had at another time.
        if not (again and any([repository.refresh(MANIFEST_FILE), repository.refresh(CONFIG_FILE)])):
            break
    raise RepositoryError(
        f"{repository}: config.json is of fingerprint {found.fingerprint}, pwl_index.json of "
        f"{manifest.fingerprint}: the files are of different saves; save or download the repository again"
    )


def _refuse_kernels(repository: Repository, config: PreTrainedConfig) -> None:
    """Refuse a repository whose config asks for an attention that transformers may fetch as code from the Hub.

    Raises:
        RepositoryError: With the attention's name.
    """
    parts = [config, *(getattr(config, key, None) for key in ("teacher_config", "student_config"))]
    for part in parts:
        wanted = attention_of(part) if part is not None else None
        for name in wanted.values() if isinstance(wanted, dict) else (wanted,):
            if name is not None and name not in _LOCAL_ATTENTION:
                raise RepositoryError(
                    f"{repository}: config.json asks for attn_implementation {name!r:.100}, which may run code "
                    "from the Hub: give attn_implementation yourself, such as 'sdpa'"
                )


def _check_config_file(repository: Repository) -> None:
    """Refuse a config that transformers' Auto classes have read from a damaged file of the cache, and mend the file.

    Raises:
        RepositoryError: If the file was damaged: what was read of it is in the caller's config.
    """
    before = repository.local(CONFIG_FILE)
    if repository.commit is None or before is None:
        return
    stamp = stamp_of(before)
    repository.fetch_text(CONFIG_FILE)
    after = repository.local(CONFIG_FILE)
    if after is None or stamp_of(after) != stamp:
        raise RepositoryError(
            f"{repository}: config.json was damaged in the cache when transformers read it, and was fetched again: "
            "load the model again"
        )


def read_config(repository: Repository, config_class: type[Config], overrides: Mapping[str, Any]) -> Config:
    """The config of a repository, with the caller's changes.

    Raises:
        RepositoryError: If `config.json` is not a PWL config.
        TypeError: If an override is not an attribute of the config.
    """
    config = repository.parse(CONFIG_FILE, lambda text: _parsed(text, repository, config_class, overrides))
    config.name_or_path = repository.name
    return config


def _parsed(text: bytes, repository: Repository, config_class: type[Config], overrides: Mapping[str, Any]) -> Config:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RepositoryError(f"{repository}: config.json is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("model_type") != config_class.model_type:
        found = data.get("model_type") if isinstance(data, dict) else data
        raise RepositoryError(
            f"{repository}: config.json has model_type {found!r:.100}, expected {config_class.model_type!r}"
        )
    try:
        check_document(CONFIG_FILE, data)
        if overrides:
            config, unused = config_class.from_dict(data, return_unused_kwargs=True, **overrides)
        else:
            # The same without its debug log, which formats the whole config even when logging is off.
            config, unused = config_class(**data), {}
    except Exception as error:
        # Of arbitrary values the config classes raise whatever they run into.
        raise RepositoryError(f"{repository}: config.json is not a valid config: {error}") from error
    if unused:
        raise TypeError(f"from_pretrained got an unexpected keyword argument {next(iter(unused))!r}")
    return config
