"""The bare floor: a network built on the meta device and laid over mapped files, with nothing read twice or checked.

Whoever loads a network has at least this to do: make its modules, map its tensors, put them in, and answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.transformers_internals import checkpoint_names, fill_missing, mark_initialized

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Bare:
    """A saved network of which all is known but its weights.

    Args:
        network: Its class.
        config: Its config.
        files: Each file, with the names of its tensors: in memory -> in the file.
        computed: Paths of the modules with buffers that no file holds (Swin's `relative_position_index`).
    """

    network: type[PreTrainedModel]
    config: PreTrainedConfig
    files: Mapping[Path, Mapping[str, str]]
    computed: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, config: PreTrainedConfig) -> Bare:
        """Find out beforehand what `load` takes for granted.

        Args:
            folder: As transformers saves a network, in one file or in shards.
            config: The network's config; it is read from the folder again, and this one stays as it is.
        """
        network = family_of(config).model_class()
        known = type(config).from_pretrained(folder)
        with torch.device("meta"):
            model = network(known)
        held = _files(folder)
        files: dict[Path, dict[str, str]] = {path: {} for path in sorted(set(held.values()))}
        for name, on_disk in checkpoint_names(model).items():
            files[held[on_disk]][name] = on_disk
        computed = tuple(path for path, part in model.named_modules() if part._non_persistent_buffers_set)
        return cls(network, known, files, computed)

    def load(self) -> PreTrainedModel:
        """The network in eval mode, its tensors pages of the files."""
        return self.fill(self.build())

    def build(self) -> PreTrainedModel:
        """The network's modules, on the meta device."""
        with torch.device("meta"):
            return self.network(self.config)

    def fill(self, model: PreTrainedModel) -> PreTrainedModel:
        """Lay the network over its files."""
        tensors: dict[str, torch.Tensor] = {}
        for path, names in self.files.items():
            with safe_open(path, framework="pt", device="cpu") as file:
                tensors |= {name: file.get_tensor(on_disk) for name, on_disk in names.items()}
        model.load_state_dict(tensors, assign=True, strict=False)
        for name in self.computed:
            _compute(model, model.get_submodule(name))
        model.eval()
        return model


class Stopwatch:
    """Seconds of the parts of something that is done again and again.

    Args:
        parts: The names of the parts, in order.
    """

    def __init__(self, *parts: str) -> None:
        self.seconds: dict[str, list[float]] = {part: [] for part in parts}
        self._at = 0.0

    def start(self) -> None:
        """The first part begins."""
        self._at = time.perf_counter()

    def lap(self, part: str) -> None:
        """A part ends, and the next one begins."""
        now = time.perf_counter()
        self.seconds[part].append(now - self._at)
        self._at = now


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor, by its name on disk."""
    index = folder / _INDEX
    if index.is_file():
        held: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in held.items()}
    with safe_open(folder / _SINGLE, framework="pt", device="cpu") as file:
        return dict.fromkeys(file.keys(), folder / _SINGLE)


def _compute(model: PreTrainedModel, part: nn.Module) -> None:
    for name in part._non_persistent_buffers_set:
        buffer = part._buffers[name]
        if buffer is not None:
            part._buffers[name] = torch.empty_like(buffer, device="cpu")
    for tensor in part.parameters():
        mark_initialized(tensor)
    fill_missing(model, part)
