"""Early exit: the teacher with classifiers where PWL would cut it, and a file a block. What one does with one network.

Notation: N blocks; B images; K labels. Exit k (from 1) stands after block k; the network's own head is exit N.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.real.family import CifarResNetFamily
from benchmarks.real.network import CifarResNetConfig, CifarResNetForImageClassification, Convolution, pooled

CONFIG_FILE = "config.json"
_FAMILY = CifarResNetFamily()


class Exit(nn.Module):
    """A classifier on a block's features: 3x3 convolutions to the last level's size and width, mean, linear.

    As the exits of "Be Your Own Teacher" (Zhang et al., arXiv 1905.08094), whose bottlenecks are these convolutions.

    Args:
        widths: Channels of the block's level and of those after it.
        num_labels: K.
    """

    def __init__(self, widths: Sequence[int], num_labels: int) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        # At the last level there is nothing to shrink.
        convolutions = [Convolution(before, after, 2) for before, after in steps] or [
            Convolution(widths[0], widths[0], 1)
        ]
        self.layers = nn.ModuleList(convolutions)
        self.classifier = nn.Linear(widths[-1], num_labels)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> logits (B, K)."""
        for layer in self.layers:
            hidden_state = layer(hidden_state).relu()
        logits: torch.Tensor = self.classifier(pooled(hidden_state))
        return logits


class ExitOutput(NamedTuple):
    """An answer.

    Args:
        logits: (B, K).
    """

    logits: torch.Tensor


class EarlyExit(nn.Module):
    """A network that answers at its last block that has arrived, as `from_pretrained` fetches one after the other.

    Args:
        config: The network's config.
        cuts: Where its blocks end, in layers.
    """

    def __init__(self, config: CifarResNetConfig, cuts: Sequence[int]) -> None:
        super().__init__()
        self.config, self.cuts = config, list(cuts)
        self.network = CifarResNetForImageClassification(config)
        levels = [_FAMILY.level(config, cut - 1)[0] for cut in self.cuts[:-1]]
        self.exits = nn.ModuleList(Exit(list(config.hidden_sizes)[level:], config.num_labels or 0) for level in levels)
        self.arrived = len(self.cuts)
        self._coming: list[Future[Path]] = []

    @property
    def num_stages(self) -> int:
        """How often it grows."""
        return len(self.cuts) - 1

    def forward(self, pixel_values: torch.Tensor) -> ExitOutput:
        """What the last exit that has arrived says of images (B, C, H, W)."""
        return ExitOutput(self.all_exits(pixel_values, only_last=True)[-1])

    def all_exits(self, pixel_values: torch.Tensor, *, only_last: bool = False) -> list[torch.Tensor]:
        """Logits (B, K) of every exit that has arrived, or of the last one alone."""
        blocks = _FAMILY.segment(self.config, self.cuts, 1, self.arrived, lambda block: self.network.get_submodule)
        outputs, logits = blocks(None, {"pixel_values": pixel_values})
        asked = list(enumerate(outputs))[-1:] if only_last else list(enumerate(outputs))
        found = [self.exits[i](output.tensor) for i, output in asked if i < len(self.exits)]
        return found if logits is None else [*found, logits]

    def state_of(self, block: int) -> dict[str, torch.Tensor]:
        """The tensors of a block (from 1) and its exit."""
        begin = self.cuts[block - 2] if block > 1 else 0
        units = range(begin, self.cuts[block - 1])
        paths = [f"network.{path}" for unit in units for path in _FAMILY.unit_paths(self.config, unit)]
        if block == 1:
            paths += [f"network.{path}" for path in _FAMILY.embedder_paths(self.config)]
        if block == len(self.cuts):
            paths += [f"network.{path}" for path in _FAMILY.head_paths(self.config)]
        else:
            paths.append(f"exits.{block - 1}")
        return {
            name: tensor for name, tensor in self.state_dict().items() if name.startswith(tuple(f"{p}." for p in paths))
        }

    def save_pretrained(self, folder: Path) -> None:
        """Write a file for each block, and the config."""
        folder.mkdir(parents=True, exist_ok=True)
        for block in range(1, len(self.cuts) + 1):
            save_file(self.state_of(block), folder / block_file(block))
        text = json.dumps({"network": self.config.to_dict(), "cuts": self.cuts}, indent=1)
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, source: str | Path, cache_dir: str | None = None) -> Self:
        """The first block of a folder or of the Hub; the others are fetched meanwhile, one after the other."""

        def fetch(name: str) -> Path:
            return (
                Path(source, name)
                if Path(source).is_dir()
                else Path(hf_hub_download(str(source), name, cache_dir=cache_dir))
            )

        stored = json.loads(fetch(CONFIG_FILE).read_text(encoding="utf-8"))
        with torch.device("meta"):
            model = cls(CifarResNetConfig(**stored["network"]), stored["cuts"])
        model.arrived = 0
        pool = ThreadPoolExecutor(1)
        model._coming = [pool.submit(fetch, block_file(block)) for block in range(1, len(model.cuts) + 1)]
        pool.shutdown(wait=False)
        model.load_next_stage()
        return model.eval()

    def load_next_stage(self) -> None:
        """Take the next block in; from then on its exit answers."""
        tensors = load_file(self._coming[self.arrived].result())
        self.load_state_dict(tensors, strict=False, assign=True)
        self.arrived += 1


def block_file(block: int) -> str:
    """The name of a block's file (from 1)."""
    return f"block-{block:05d}.safetensors"
