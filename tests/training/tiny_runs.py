"""Tiny training runs, shared by the tests of the Trainer: seconds on one core, and seeded to the last bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification

from pwl_hf import PWLForImageClassification, PWLForSequenceClassification
from pwl_hf.training.images.augmentation import Augmentation
from pwl_hf.training.objective.distillation import build_objective
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from pwl_hf.training.trainer.pwl_trainer import PWLTrainer
from pwl_hf.training.trainer.training_arguments import PWLTrainingArguments
from tests.modeling.types import network_config
from tests.tiny import NUM_LABELS, tiny_images, tiny_model

_OPTIONS: dict[str, Any] = {
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
    arguments = PWLTrainingArguments(**_OPTIONS | {"output_dir": str(folder)} | options)
    return PWLTrainer(
        model,
        arguments,
        build_objective(model, ObjectiveArguments(**(objective or {})), arguments.seed),
        train_dataset=Pictures(family, images),
        eval_dataset=Pictures(family, eval_images, seed=2) if eval_images else None,
        augmentation=AUGMENTATION,
        processing_class=processing_class,
    )


class Texts(Dataset):
    """Texts of different lengths with labels, as the data part gives them; `collate` pads."""

    def __init__(self, count: int, seed: int = 1) -> None:
        draw = random.Random(seed)
        lengths = [draw.randrange(3, 12) for _ in range(count)]
        self.items = [
            {"input_ids": [draw.randrange(1, 50) for _ in range(length)], "labels": draw.randrange(3), "sample_ids": i}
            for i, length in enumerate(lengths)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]

    def collate(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.tensor([item["input_ids"] + [0] * (longest - len(item["input_ids"])) for item in items])
        answers = {name: torch.tensor([item[name] for item in items]) for name in ("labels", "sample_ids")}
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), **answers}


def text_trainer(
    folder: Path, *, objective: dict[str, Any] | None = None, eval_images: int = 8, **options: Any
) -> PWLTrainer:
    """As `tiny_trainer`, of a BERT with a narrower one, over 16 texts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Without dropout: processes would draw it each for itself.
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        networks = [
            AutoModelForSequenceClassification.from_config(network_config("bert", role, **still))
            for role in ("teacher", "student")
        ]
        model = PWLForSequenceClassification.from_teacher_student(*networks, num_blocks=3)
    arguments = PWLTrainingArguments(**_OPTIONS | {"output_dir": str(folder)} | options)
    return PWLTrainer(
        model,
        arguments,
        build_objective(model, ObjectiveArguments(**(objective or {})), arguments.seed),
        train_dataset=Texts(16),
        eval_dataset=Texts(eval_images, seed=2),
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
