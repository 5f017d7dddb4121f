"""Tiny training runs, shared by the tests of the Trainer: seconds on one core, and seeded to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from pwl_hf import PWLForImageClassification
from pwl_hf.training.images.augmentation import Augmentation
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.trainer.pwl_trainer import PWLTrainer
from pwl_hf.training.trainer.training_arguments import PWLTrainingArguments
from tests.tiny import NUM_LABELS, tiny_images, tiny_model

AUGMENTATION = Augmentation(rotation=10, horizontal_flip=True, crop=0.125)


class Pictures(Dataset):
    """Images of noise with labels, as the data part gives them."""

    def __init__(self, family: str, count: int, seed: int = 1, labelled: bool = True) -> None:
        self.images = tiny_images(family, count, seed)
        self.labels = torch.randint(NUM_LABELS, (count,), generator=torch.Generator().manual_seed(seed))
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"pixel_values": self.images[index], "sample_ids": index}
        return item | ({"labels": int(self.labels[index])} if self.labelled else {})


def tiny_trainer(
    folder: Path,
    family: str = "vit",
    *,
    model: PWLForImageClassification | None = None,
    objective: dict[str, Any] | None = None,
    images: int = 16,
    eval_images: int = 8,
    processing_class: Any = None,
    **options: Any,
) -> PWLTrainer:
    """A Trainer of the tiny pair over `images` images, four a step; `options` are those of the arguments."""
    model = tiny_model(family) if model is None else model
    arguments = PWLTrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "weight_decay": 0.1,
            "logging_steps": 2,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "report_to": "none",
        }
        | options
    )
    return PWLTrainer(
        model,
        arguments,
        build_objective(model, ObjectiveArguments(**(objective or {})), arguments.seed),
        train_dataset=Pictures(family, images),
        eval_dataset=Pictures(family, eval_images, seed=2) if eval_images else None,
        augmentation=AUGMENTATION,
        processing_class=processing_class,
    )


def everything(model: PWLForImageClassification, prefix: str = "") -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers whose names begin so, and of the masks' own statistics."""
    found = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mask, statistics in model.statistics.items():
        found |= {f"statistics/{mask}/{name}": tensor.clone() for name, tensor in statistics.items()}
    return {name: tensor for name, tensor in found.items() if name.startswith(prefix)}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """The names of tensors that are not the same in both, bit for bit."""
    return sorted(
        name
        for name in one.keys() | other.keys()
        if name not in one or name not in other or not _same(one, other, name)
    )


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str) -> bool:
    return torch.equal(one[name], other[name])
