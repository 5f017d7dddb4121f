"""The published weights as a checkpoint that transformers reads: `python -m benchmarks.real.published RECIPE.yaml`.

A recipe has `weights` (the file), `output_dir`, `depths`, `hidden_sizes` and `label_names`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import ViTImageProcessorPil
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.real.network import CifarResNetConfig, CifarResNetForImageClassification

# As akamaster/pytorch_resnet_cifar10 names modules -> as `network` does.
_NAMES = (
    (re.compile(r"^module\."), ""),
    (re.compile(r"^layer(\d+)\.(\d+)\.conv(\d)\."), r"levels.\1.layers.\2.layer.\3.convolution."),
    (re.compile(r"^layer(\d+)\.(\d+)\.bn(\d)\."), r"levels.\1.layers.\2.layer.\3.normalization."),
    (re.compile(r"^conv1\."), "embedder.convolution."),
    (re.compile(r"^bn1\."), "embedder.normalization."),
    (re.compile(r"^linear\."), "classifier."),
)
# Counted from 1 there.
_COUNTED = re.compile(r"^(levels\.)(\d+)(\.layers\.\d+\.layer\.)(\d+)")
# What the published weights were trained on.
_SIZE = 32


def renamed(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a published checkpoint under the names of `network`."""
    found = {}
    for name, tensor in published.items():
        for pattern, replacement in _NAMES:
            name = pattern.sub(replacement, name)
        found[_COUNTED.sub(lambda m: f"{m[1]}{int(m[2]) - 1}{m[3]}{int(m[4]) - 1}", name)] = tensor
    return found


def network_of(published: Mapping[str, torch.Tensor], config: CifarResNetConfig) -> CifarResNetForImageClassification:
    """A network with published weights, in eval mode.

    Raises:
        RuntimeError: If they are not those of the config, with the tensors' names.
    """
    network = CifarResNetForImageClassification(config)
    # Steps are counted for training alone, and were left out when the weights were published.
    state = {name: tensor for name, tensor in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(state | renamed(published))
    return network.eval()


def processor() -> ViTImageProcessorPil:
    """What prepares the images as the published network was trained; those of CIFAR keep their pixels."""
    size = {"height": _SIZE, "width": _SIZE}
    return ViTImageProcessorPil(size=size, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)


def main(recipe: Path) -> None:
    """Write the checkpoint that a recipe asks for."""
    options: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    names = dict(enumerate(options["label_names"]))
    config = CifarResNetConfig(
        depths=options["depths"],
        hidden_sizes=options["hidden_sizes"],
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    folder = Path(options["output_dir"])
    network_of(load_file(options["weights"]), config).save_pretrained(folder)
    processor().save_pretrained(folder)
    # Nothing was trained here.
    (folder / "train_results.json").write_text(json.dumps({"train_runtime": 0.0, "train_samples_per_second": 0.0}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
