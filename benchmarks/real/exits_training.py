"""Trains the exits of a teacher by self-distillation: `python -m benchmarks.real.exits_training RECIPE.yaml`.

With z_k the logits of exit k and z those of the network's own head, a step minimises, over exits 1 to N - 1,

    sum_k alpha CE(z_k, y) + (1 - alpha) T^2 KL(softmax(z / T) || softmax(z_k / T))

(Zhang et al., arXiv 1905.08094, without its hints). The backbone is `frozen`, and the network stays the teacher; or
`trained`, and CE(z, y) is added.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, set_seed

from benchmarks.real.exits import EarlyExit
from benchmarks.real.network import CifarResNetForImageClassification
from pwl_hf.data import DataSource, open_split
from pwl_hf.training.images.augmentation import AUGMENTATIONS
from pwl_hf.training.objective.losses import distillation_loss, hard_loss


@dataclass(frozen=True)
class Options:
    """What a recipe says.

    Args:
        output_dir: Where the network with its exits is written.
        teacher: The folder of the teacher.
        dataset: The data, as `training/train.py` takes it.
        cuts: Where blocks end, in layers.
        backbone: `frozen` or `trained`.
        num_train_epochs: How long.
        batch_size: Images of a step.
        learning_rate: At the beginning; it falls to 0 as half a cosine.
        backbone_lr_scale: What it is multiplied by for a backbone that is trained.
        weight_decay: Of all weights.
        momentum: Of SGD.
        alpha: The weight of the labels.
        temperature: T.
        augmentation: As `training/train.py` takes it.
        seed: Of first weights, order and augmentation.
        max_train_samples: Train on so many images.
    """

    output_dir: str
    teacher: str
    dataset: str
    cuts: list[int]
    backbone: Literal["frozen", "trained"]
    num_train_epochs: int
    seed: int
    batch_size: int = 128
    learning_rate: float = 0.05
    backbone_lr_scale: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    alpha: float = 0.4
    temperature: float = 2.0
    augmentation: str = "flip-crop"
    max_train_samples: int | None = None


def train(options: Options) -> EarlyExit:
    """Train exits, and write the network with them."""
    # 1. Images in memory, the network with its exits.
    processor = AutoImageProcessor.from_pretrained(options.teacher)  # type: ignore[no-untyped-call]
    source = DataSource(options.dataset, max_samples=options.max_train_samples)
    images = open_split(source, "train").pixels(processor, num_channels=3, keep_in_memory=True)
    set_seed(options.seed)
    teacher = CifarResNetForImageClassification.from_pretrained(options.teacher)
    model = EarlyExit(teacher.config, options.cuts)
    model.network.load_state_dict(teacher.state_dict())
    device = PartialState().device
    model.to(device)
    is_trained = options.backbone == "trained"
    groups: list[dict[str, Any]] = [{"params": list(model.exits.parameters()), "lr": options.learning_rate}]
    if is_trained:
        rate = options.learning_rate * options.backbone_lr_scale
        groups.append({"params": list(model.network.parameters()), "lr": rate})
    optimizer = torch.optim.SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay, nesterov=True)
    loader: DataLoader[Any] = DataLoader(images, options.batch_size, shuffle=True, drop_last=True)
    steps = len(loader) * options.num_train_epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    # 2. Steps.
    augmentation, start, step = AUGMENTATIONS[options.augmentation], time.monotonic(), 0
    model.train()
    model.network.train(is_trained).requires_grad_(is_trained)
    for epoch in range(options.num_train_epochs):
        for batch in loader:
            batch = {name: values.to(device) for name, values in batch.items()}
            labels = batch["labels"]
            pixel_values = augmentation.augment(batch["pixel_values"], batch["sample_ids"], options.seed, step)
            *exits, final = model.all_exits(pixel_values)
            loss = hard_loss(final, labels) if is_trained else torch.zeros((), device=device)
            for logits in exits:
                loss = loss + distillation_loss(logits, labels, final, options.alpha, options.temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
        sys.stderr.write(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.monotonic() - start:.0f} s\n")
    # 3. The files, and what the benchmarks want to know of a training.
    seconds = time.monotonic() - start
    model.eval().cpu().save_pretrained(Path(options.output_dir))
    results = {"train_runtime": seconds, "train_samples_per_second": step * options.batch_size / seconds}
    Path(options.output_dir, "train_results.json").write_text(json.dumps(results), encoding="utf-8")
    return model


def main(recipe: Path) -> None:
    """Train as a recipe says."""
    train(Options(**yaml.safe_load(recipe.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
