"""The model card of a repository, rendered from its manifest and config (no torch).

What is generated stands between two comment lines; the rest of a card belongs to the people who write it
and is kept when the repository is published again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from jinja2 import Environment, StrictUndefined
from yaml import YAMLError  # type: ignore[import-untyped]

from ..bounds import MAX_TEXT_BYTES, check_count
from ..errors import RepositoryError
from ..graphs.index import INDEX_FILE
from ..plain import in_markdown, one_line
from ..repository.files import write_text
from ..repository.layout import CONFIG_FILE, PROCESSOR_FILE
from ..repository.manifest import Manifest
from ..repository.source import Repository
from ..task_names import FIRST_TASK, TASKS, TOKENIZER_FILES, Task

CARD_FILE = "README.md"
_BEGIN, _END = "<!-- pwl-hf: generated from pwl_index.json, do not edit -->", "<!-- pwl-hf: end -->"
# Innermost, so that markers which people moved or copied enclose none of their text.
_GENERATED = re.compile(f"{re.escape(_BEGIN)}(?:(?!{re.escape(_BEGIN)}).)*?{re.escape(_END)}", re.DOTALL)
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_TAGS = ("progressive-weight-loading", "pwl", "knowledge-distillation", "model-stitching")


def render_card(
    manifest: Manifest,
    texts: Mapping[str, bytes],
    *,
    repo_id: str,
    existing: str | None = None,
    card_data: Mapping[str, Any] | None = None,
    token: str | bool | None = None,
) -> str:
    """The text of the card.

    Args:
        manifest: The repository's manifest.
        texts: The repository's text files by path; `config.json` is read.
        repo_id: The id, or the folder's name, for the usage examples.
        existing: The card that is there: its metadata and everything outside the generated part are kept.
        card_data: Metadata that wins over what is found.
        token: For looking up the teacher's licence.

    Raises:
        RepositoryError: If `config.json` is none of a PWL model.
    """
    config = _config(texts[CONFIG_FILE], repo_id)
    generated = _generated(
        manifest, config, repo_id, has_processor=not {PROCESSOR_FILE, TOKENIZER_FILES[0]}.isdisjoint(texts)
    )
    old = ModelCard(existing, ignore_metadata_errors=True) if existing else None
    data: dict[str, Any] = {"license": _teacher_license(config.get("base_model"), token)}
    data |= old.data.to_dict() if old else {}
    data |= _metadata(manifest, config)
    tags = (*_TAGS[:2], _task(config).pipeline, *_TAGS[2:])
    data["tags"] = [*tags, *(t for t in data.get("tags", []) if t not in tags)]
    for key, value in (card_data or {}).items():
        data[key] = [*data["tags"], *(t for t in value if t not in data["tags"])] if key == "tags" else value
    metadata = ModelCardData(
        model_name=repo_id.rpartition("/")[2],
        eval_results=_eval_results(manifest, _task(config).pipeline) or None,
        ignore_metadata_errors=True,
        **{key: value for key, value in data.items() if value is not None and key not in ("model-index", "model_name")},
    )
    if old is None:
        body = f"# {repo_id}\n\n{generated}\n"
    elif (place := _GENERATED.search(old.text)) is not None:
        body = old.text[: place.start()] + generated + old.text[place.end() :]
    else:
        body = f"{old.text.rstrip()}\n\n{generated}\n"
    return f"---\n{metadata.to_yaml()}\n---\n\n{body.lstrip()}"


def read_card(content: bytes, where: str) -> str:
    """The text of a card that is there.

    Args:
        content: The file's.
        where: What the error calls it.

    Raises:
        RepositoryError: If it is no text, or its metadata are no YAML: they could not be kept.
    """
    try:
        text = content.decode("utf-8")
        ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RepositoryError(
            f"{where} is no model card that can be kept: {reason}; mend it or move it away"
        ) from error
    return text


def card_of(directory: str | Path) -> str | None:
    """The card in a repository's folder; None if there is none.

    Raises:
        RepositoryError: If it is a link out of the folder, or cannot be read.
    """
    card = Path(directory, CARD_FILE)
    if not os.path.lexists(card):
        return None
    Repository.open(directory).check_links([CARD_FILE])
    try:
        if not card.is_file():
            # A pipe would be waited for.
            raise RepositoryError(f"{card} is no file: move it away")
        check_count(str(card), card.stat().st_size, MAX_TEXT_BYTES, "bytes")
        return read_card(card.read_bytes(), str(card))
    except RepositoryError:
        raise
    except (OSError, ValueError) as error:
        raise RepositoryError(f"{card} cannot be read: {error}; move it away") from error


def own_words(card: str) -> str:
    """What people wrote in a card: its text without the generated part."""
    text = ModelCard(card, ignore_metadata_errors=True).text
    place = _GENERATED.search(text)
    before, after = (text, "") if place is None else (text[: place.start()], text[place.end() :])
    return f"{before.strip()}\n{after.strip()}"


def write_card(
    directory: str | Path,
    *,
    repo_id: str | None = None,
    card_data: Mapping[str, Any] | None = None,
    token: str | bool | None = None,
) -> Path:
    """Write the card of a saved repository into its folder, keeping what people wrote in it.

    Args:
        directory: The repository's folder.
        repo_id: The id it will have; the folder's name by default.
        card_data: Metadata that wins over what is found, such as `{"license": "mit"}`.
        token: For looking up the teacher's licence.

    Raises:
        RepositoryError: If the folder is no PWL repository, or its card is a link out of it, or cannot be read.
    """
    root = Path(directory)
    repository = Repository.open(root)
    texts = {CONFIG_FILE: repository.fetch_text(CONFIG_FILE)}
    # That they are there is all that the card says.
    texts |= {name: b"" for name in (PROCESSOR_FILE, TOKENIZER_FILES[0]) if (root / name).is_file()}
    card = root / CARD_FILE
    text = render_card(
        repository.manifest(),
        texts,
        repo_id=repo_id or root.resolve().name,
        existing=card_of(root),
        card_data=card_data,
        token=token,
    )
    write_text(card, text)
    return card


def stage_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """What each stage adds and reaches: one row a stage, for tables.

    Returns:
        `stage`, `sources`, `files`, `bytes` and `total_bytes`, `parameters` and `total_parameters` (of all
        files fetched so far), and `metrics` (name -> value).
    """
    rows: list[dict[str, Any]] = []
    total_bytes = total_parameters = 0
    for stage in manifest.stages:
        size, parameters = sum(f.bytes for f in stage.files), sum(f.parameters for f in stage.files)
        total_bytes, total_parameters = total_bytes + size, total_parameters + parameters
        rows.append(
            {
                "stage": stage.stage,
                "sources": stage.sources,
                "files": [f.path for f in stage.files],
                "bytes": size,
                "total_bytes": total_bytes,
                "parameters": parameters,
                "total_parameters": total_parameters,
                "metrics": {metric.name: metric.value for metric in stage.metrics},
            }
        )
    return rows


def human_bytes(size: int) -> str:
    """A size in decimal units: 12_345 -> '12.3 kB'."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _generated(manifest: Manifest, config: Mapping[str, Any], repo_id: str, *, has_processor: bool) -> str:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"human_bytes": human_bytes, "in_markdown": lambda value: in_markdown(str(value))}
    template = (
        resources.files("pwl_hf.modeling.publishing")
        .joinpath("templates/model_card.md.jinja")
        .read_text(encoding="utf-8")
    )
    rows = stage_rows(manifest)
    metrics = [metric for stage in manifest.stages for metric in stage.metrics]
    text = environment.from_string(template).render(
        repo_id=repo_id,
        config=config,
        task=_task(config),
        base_model=_hub_id(config.get("base_model")),
        rows=rows,
        num_blocks=manifest.num_blocks,
        num_stages=manifest.num_stages,
        dtype=manifest.dtype,
        tier=manifest.tier,
        shared_embedder=manifest.shared_embedder,
        shard_bytes=sum(entry.bytes for entry in manifest.files if entry.path.startswith("teacher/")),
        metric_names=list(dict.fromkeys(metric.name for metric in metrics)),
        measured_on=list(dict.fromkeys((metric.dataset, metric.split, metric.n) for metric in metrics)),
        has_processor=has_processor,
        has_statistics=bool(manifest.masks),
        has_graphs=INDEX_FILE in {entry.path for entry in manifest.attachments},
        needs_remote_code=config["teacher_config"]["model_type"].startswith("pwl_"),
    )
    return f"{_BEGIN}\n{text.strip()}\n{_END}"


def _config(text: bytes, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
        if not isinstance(config["teacher_config"]["model_type"], str):
            raise TypeError("model_type is no text")
    except (ValueError, RecursionError, TypeError, LookupError) as error:
        raise RepositoryError(f"{where}: {CONFIG_FILE} is no config of a PWL model: {error!r:.200}") from error
    found: dict[str, Any] = config
    return found


def _task(config: Mapping[str, Any]) -> Task:
    """The task of a model; of one that the library does not have, images stand for what it takes."""
    return TASKS.get(str(config.get("task")), TASKS[FIRST_TASK])


def _metadata(manifest: Manifest, config: Mapping[str, Any]) -> dict[str, Any]:
    datasets = {metric.dataset for stage in manifest.stages for metric in stage.metrics}
    return {
        "library_name": "pwl-hf",
        "pipeline_tag": _task(config).pipeline,
        # Only what can be an id on the Hub: other names stand in the text.
        **({"base_model": base_model} if (base_model := _hub_id(config.get("base_model"))) else {}),
        **({"datasets": ids} if (ids := sorted(filter(None, map(_hub_id, datasets)))) else {}),
    }


def _hub_id(name: Any) -> str | None:
    """What can be an id on the Hub, and is no path; None for anything else."""
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) else None


def _eval_results(manifest: Manifest, pipeline: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=pipeline,
            dataset_type=re.sub(r"[^\w./-]+", "-", metric.dataset),
            dataset_name=_in_metadata(metric.dataset),
            dataset_split=_in_metadata(metric.split),
            # Of the Hub's names, F1 has one, however it is averaged.
            metric_type="f1" if metric.name.endswith("_f1") else _in_metadata(metric.name),
            metric_name=f"{_in_metadata(metric.name)}, stage {stage.stage} ({stage.sources})",
            metric_value=metric.value,
        )
        for stage in manifest.stages
        for metric in stage.metrics
    ]


def _in_metadata(name: str) -> str:
    """A name on one line, and no HTML: pages show the metadata as well."""
    return one_line(name).replace("<", "&lt;").replace(">", "&gt;")


def _teacher_license(base_model: Any, token: str | bool | None) -> str | None:
    """The licence that the teacher's own card on the Hub names; a PWL repository contains the teacher."""
    if _hub_id(base_model) is None:
        return None
    try:
        # Not `ModelCard.load`, which would read a local file of that name.
        card = read_card(Path(hf_hub_download(base_model, CARD_FILE, token=token)).read_bytes(), base_model)
    except (HfHubHTTPError, OSError, ValueError):
        return None
    found = ModelCard(card, ignore_metadata_errors=True).data.get("license")
    return one_line(found) if isinstance(found, str) else None
