"""Code that a repository carries, so that plain transformers can open it: one generated file, or none.

A repository holds no code unless it is asked for (`remote_code="standalone"`): code that travels with weights is frozen
with its faults, and takes requests before the first answer. Networks that transformers lacks have theirs in any case,
for the teacher's plain checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import PreTrainedConfig

from ..configuration_pwl import PWLConfig
from ..errors import RepositoryError
from ..families.built_in import FAMILIES, OWN_CONFIGS
from ..repository.layout import CONFIG_FILE
from ..task_names import FIRST_TASK, TASKS
from .joining import join

STANDALONE = "standalone"
NONE = "none"
STANDALONE_FILE = "pwl_standalone.py"

# The package that is joined, `pwl_hf.modeling`, and where it lies.
_PACKAGE, _ROOT = __name__.rsplit(".", 2)[0], Path(__file__).parents[1]
_REGISTRY = "families.built_in"
# What asks a Hub is imported where one is asked, and belongs into the file all the same.
_ON_DEMAND = ("repository.fetching",)

_ABSENT = "ImportError('this needs the package: pip install \"pwl-hf[torch]\"')"
_STANDALONE_HEADER = """A model that answers after its first small file and grows into its teacher while it serves.

Written by {generator}, with the repository that it lies in; do not edit. It loads that repository, steps through its
stages and streams them, without the package. To save, join or train: pip install "pwl-hf[torch]".

Licence: Apache-2.0.
"""
_NETWORK_HEADER = """A network that transformers lacks. Written by {generator}; do not edit. Licence: Apache-2.0."""


def chosen_code(config: PWLConfig, remote_code: str | None) -> str:
    """What a save is to carry: what was asked for, or else what the model's repository carried.

    Args:
        config: The model's config; its `auto_map` tells what it was loaded with.
        remote_code: `"standalone"`, `"none"`, or None for as it was.

    Raises:
        ValueError: For another value; for networks whose family is not the library's, and so not in the file.
    """
    if remote_code not in (None, STANDALONE, NONE):
        raise ValueError(f"remote_code must be {STANDALONE!r} or {NONE!r}, got {remote_code!r}")
    chosen = remote_code or (STANDALONE if getattr(config, "auto_map", None) else NONE)
    if chosen == STANDALONE and config.task not in TASKS:
        raise ValueError(
            f"remote_code='standalone' holds tasks of the library alone, and {config.task!r} is none of them"
        )
    own = [t for t in _model_types(config) if not _is_whole(t)]
    if chosen == STANDALONE and own:
        raise ValueError(
            f"remote_code='standalone' holds families of the library alone, and {own[0]!r} was registered by yours: "
            "give remote_code='none', and register the family where the model is loaded"
        )
    return chosen


def choose_code(config: PWLConfig, remote_code: str | None) -> None:
    """Let all later saves of a model carry this code, by the `auto_map` of its config; None changes nothing."""
    if remote_code is not None:
        set_auto_map(config, auto_map(chosen_code(config, remote_code), config.task))


def set_auto_map(config: PreTrainedConfig, found: dict[str, str] | None) -> None:
    """Set or remove a config's `auto_map`: None would be saved as null."""
    config.auto_map = found
    if found is None:
        del config.auto_map


def auto_map(remote_code: str, task: str | None) -> dict[str, str] | None:
    """The `auto_map` of a repository's config.

    Args:
        remote_code: As `chosen_code` gives it.
        task: The task of its model.
    """
    if remote_code == NONE or task is None:
        return None
    module = Path(STANDALONE_FILE).stem
    return {"AutoConfig": f"{module}.PWLConfig", task: f"{module}.{TASKS[task].class_name}"}


def network_auto_map(model_type: str) -> dict[str, str] | None:
    """The `auto_map` of a network's own config, None for one that transformers knows."""
    module = FAMILIES[model_type].code_module
    if module is None:
        return None
    return {
        "AutoConfig": f"{module}.{OWN_CONFIGS[model_type].__name__}",
        "AutoModelForImageClassification": f"{module}.{FAMILIES[model_type].model_class().__name__}",
    }


def code_paths(config: PWLConfig, remote_code: str) -> set[str]:
    """The paths of `code_of`."""
    module = FAMILIES[config.teacher_config.model_type].code_module
    return {
        *([f"{module}.py"] if module is not None else []),
        *([STANDALONE_FILE] if remote_code == STANDALONE else []),
    }


def code_of(config: PWLConfig, remote_code: str) -> dict[str, str]:
    """The code files of a repository, by path.

    Args:
        config: The model's config.
        remote_code: As `chosen_code` gives it.
    """
    return {path: _code(config, path) for path in sorted(code_paths(config, remote_code))}


def _code(config: PWLConfig, path: str) -> str:
    if path != STANDALONE_FILE:
        return join(f"families.{Path(path).stem}", _read, header=_header(_NETWORK_HEADER), absent=_ABSENT)
    registry = _registry(_model_types(config))
    return join(
        TASKS[config.task or FIRST_TASK].module,
        lambda name: registry if name == _REGISTRY else _read(name),
        also=_ON_DEMAND,
        header=_header(_STANDALONE_HEADER),
        absent=_ABSENT,
    )


def with_code(texts: Mapping[str, bytes], remote_code: str) -> dict[str, bytes]:
    """The text files of a saved repository with other code, or with none; code of older versions goes.

    Args:
        texts: The files by path, with `config.json` and `teacher/config.json`.
        remote_code: `"standalone"` or `"none"`.

    Raises:
        RepositoryError: If a config is malformed.
        ValueError: As `chosen_code`.
    """
    configs = {}
    for path in (CONFIG_FILE, f"teacher/{CONFIG_FILE}"):
        try:
            configs[path] = json.loads(texts[path])
            configs[path].pop("auto_map", None)
        except (AttributeError, LookupError, ValueError) as error:
            raise RepositoryError(f"{path} is missing or malformed: {type(error).__name__}: {error}") from error
    config = PWLConfig(**configs[CONFIG_FILE])
    chosen = chosen_code(config, remote_code)
    of_teacher = network_auto_map(config.teacher_config.model_type)
    for path, found in ((CONFIG_FILE, auto_map(chosen, config.task)), (f"teacher/{CONFIG_FILE}", of_teacher)):
        configs[path] |= {} if found is None else {"auto_map": found}
    code = code_in(texts)
    kept = {path: content for path, content in texts.items() if path not in code}
    written = {path: json.dumps(data, indent=2, sort_keys=True) + "\n" for path, data in configs.items()}
    return kept | {path: text.encode() for path, text in (written | code_of(config, chosen)).items()}


def code_in(texts: Mapping[str, bytes]) -> set[str]:
    """The code files of a repository: those that its configs name, and what they import of one another."""
    waiting = set()
    for path in (CONFIG_FILE, f"teacher/{CONFIG_FILE}"):
        with suppress(ValueError, AttributeError, TypeError):
            names = json.loads(texts.get(path, b"{}")).get("auto_map", {}).values()
            waiting |= {f"{name.rpartition('--')[2].partition('.')[0]}.py" for name in names}
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in texts and path not in found:
            found.add(path)
            imported = re.findall(rb"^\s*from \.(\w+) import", texts[path], flags=re.MULTILINE)
            waiting |= {f"{name.decode()}.py" for name in imported}
    return found


def _registry(model_types: list[str]) -> str:
    """The source of `families/built_in.py` with some of the families alone; those that are data are written out."""
    lines = [
        '"""The families of this repository."""',
        "from .registry import FAMILIES, OWN_CONFIGS, family_of, register_family",
    ]
    calls = []
    for model_type in model_types:
        family, arguments = FAMILIES[model_type], ""
        made = repr(family) if is_dataclass(family) else f"{type(family).__name__}()"
        lines.append(_import(type(family)))
        if family.code_module is not None:
            config_class = OWN_CONFIGS[model_type]
            lines += [_import(config_class), _import(family.model_class())]
            arguments = f", config_class={config_class.__name__}"
        calls.append(f'register_family("{model_type}", {made}{arguments})')
    return "\n".join([*lines, "", *calls, ""])


def _import(of: type) -> str:
    return f"from .{of.__module__.rpartition('.')[2]} import {of.__name__}"


def _is_whole(model_type: str) -> bool:
    """Whether the file has all that a family needs: code of the library alone, and a config that transformers has."""
    family = FAMILIES[model_type]
    knows_config = model_type not in OWN_CONFIGS or family.code_module is not None
    return knows_config and type(family).__module__.startswith(f"{_PACKAGE}.")


def _model_types(config: PWLConfig) -> list[str]:
    return sorted({config.teacher_config.model_type, config.student_config.model_type})


def _read(name: str) -> str:
    return _ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")


def _header(text: str) -> str:
    try:
        generator = f"pwl-hf {version('pwl-hf')}"
    except PackageNotFoundError:
        generator = "pwl-hf"
    return text.format(generator=generator)
