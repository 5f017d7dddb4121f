"""Exporting a repository: all its graphs and their index, proved before they are given out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from ..arrays.mapped import MappedFile
from ..errors import MissingFileError, RepositoryError, SaveError
from ..families.registry import family_of
from ..graphs.index import INDEX_FILE, GraphIndex
from ..parts.parts import Parts
from ..parts.router import Router
from ..repository.layout import PROCESSOR_FILE
from ..repository.manifest import Manifest
from ..repository.source import Repository
from ..schedule import Schedule
from ..task_names import FIRST_TASK
from .examples import Examples, check_exported, examples_of, examples_of_arrays, takes_of
from .graphs import GraphWriter
from .proving import prove, torch_logits
from .tokenizing import tokenization_of


class Export(NamedTuple):
    """The graphs of a repository, proved and not written yet.

    Args:
        manifest: The manifest of the weights that they are for.
        files: Their contents by path, `onnx/index.json` among them.
        differences: The largest difference of each stage's logits from torch's in float64, in parts of their range.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    differences: Mapping[int, float]


def export_onnx(parts: Parts, main_input: str, *, image_size: int | None = None) -> Export:
    """Export a repository: its graphs hold no weights, but name ranges of its files.

    Args:
        parts: The parts of a model that was loaded from it whole (`keep_all=True`), on the CPU and in float32, as the
            graphs compute.
        main_input: The name of the model's main input.
        image_size: The height and width of the images, in pixels; by default what the config or the image processor
            says.

    Raises:
        RepositoryError: If a file is not what the manifest says.
        SaveError: If the model is no such one, takes what is not exported, or a layer cannot be exported; if what was
            exported differs from torch, or the chain of the blocks from the teacher's own graph.
        ValueError: If the size of the images is told nowhere, or given for a model of something else.
    """
    check_exported(parts.config)
    model, store = parts.networks.model, parts.store
    if store is None or not parts.keeps_all or model.dtype != torch.float32 or model.device.type != "cpu":
        raise SaveError(
            "only a model that was loaded whole is exported: from_pretrained(folder, keep_all=True, "
            f"dtype=torch.float32) on the CPU, this one is {model.dtype} on {model.device}"
        )
    repository, manifest, config = store.repository, store.manifest, parts.config
    # Blocks in low precision run the graphs of the blocks themselves.
    schedule = manifest.schedule.without_tier()
    weights = [entry for entry in manifest.files if entry.tier_block is None]
    # 1. The files as they lie there, and inputs that no layer could take for others.
    files = {path: MappedFile(local) for path, local in repository.fetch_verified(weights).items()}
    takes = takes_of(config)
    processor = None if takes == "token ids" else _processor(repository)
    tokenizer = tokenization_of(repository, config) if takes == "token ids" else None
    if takes == "images":
        examples = examples_of_arrays(main_input, _image_shape(config.teacher_config, processor, image_size))
    elif image_size is not None:
        raise ValueError(f"image_size is {image_size!r}, and the model takes {takes}: leave it out")
    else:
        examples = examples_of(config, main_input, tokenizer.padding_side if tokenizer is not None else "right")
    _check_fit(parts, schedule, examples, takes)
    # 2. The graphs, compared before anyone sees them.
    exported = GraphWriter(parts, schedule, files, examples).graphs()
    logits = torch_logits(parts, schedule, examples)
    differences = prove(exported, schedule, files, examples, logits)
    # 3. What a reader needs beside them.
    index = GraphIndex(
        fingerprint=manifest.fingerprint,
        task=config.task or FIRST_TASK,
        inputs=examples.shapes,
        dtypes=examples.dtypes,
        graphs={path: found.graph for path, found in exported.items()},
        stages=schedule.masks,
        labels=tuple(name for _, name in sorted((config.id2label or {}).items())),
        problem_type=config.problem_type,
        processor=processor,
        tokenizer=tokenizer,
        min_length=examples.shortest,
    )
    contents = {path: found.content for path, found in exported.items()}
    return Export(manifest, {**contents, INDEX_FILE: index.to_json().encode()}, differences)


def _check_fit(parts: Parts, schedule: Schedule, examples: Examples, takes: str) -> None:
    """Refuse inputs that a network does not take, before anything is traced."""
    router = Router(parts)
    for mask in (schedule.masks[0], schedule.masks[-1]):
        for probe in examples.probes:
            try:
                with torch.no_grad():
                    router.of(mask.mask)(examples.given(probe))
            except Exception as error:  # whatever the network's own code raises
                reason = f"{type(error).__name__}: {error}"
                shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in probe.items())
                if takes != "images":
                    raise SaveError(f"the networks do not take {shapes}, so nothing was exported; {reason}") from error
                _, channels, height, width = next(iter(probe.values())).shape
                raise ValueError(
                    f"the networks do not take images of {height} x {width} pixels and {channels} channels: give "
                    f"another image_size (--image-size); {reason}"
                ) from error


def _image_shape(
    config: PreTrainedConfig, processor: Mapping[str, Any] | None, image_size: int | None
) -> tuple[int, int, int]:
    """Channels, height and width of the images, which are fixed in a graph."""
    family = family_of(config)
    seeing, channels = family.seeing(config), family.input_settings(config).get("num_channels", 3)
    if image_size is not None and (isinstance(image_size, bool) or image_size < 1):
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size!r}")
    size = image_size if image_size is not None else getattr(seeing, "image_size", None)
    if size is None and processor is not None:
        size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(size, Mapping):
        size = size["shortest_edge"] if "shortest_edge" in size else (size.get("height"), size.get("width"))
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(
            "neither the config nor the image processor says how large the images are: give image_size (--image-size)"
        )
    return (channels, *sides)


def _processor(repository: Repository) -> dict[str, Any] | None:
    try:
        found = json.loads(repository.fetch_text(PROCESSOR_FILE))
    except MissingFileError:
        return None
    except ValueError as error:
        raise RepositoryError(f"{repository}: {PROCESSOR_FILE} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RepositoryError(f"{repository}: {PROCESSOR_FILE} must be an object, got {found!r:.100}")
    return found
