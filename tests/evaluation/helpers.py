"""Models and data whose right answers are known in another way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import ViTConfig

from pwl_hf import PWLConfig, PWLForImageClassification
from pwl_hf.data.digits import image_processor
from tests.tiny import NUM_LABELS, tiny_images


class Images(Dataset):
    """Tensors as data, counting how often each is read."""

    def __init__(self, pixel_values: torch.Tensor, labels: Sequence[int] | None) -> None:
        self.pixel_values, self.labels = pixel_values, labels
        self.reads = 0

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, row: int) -> dict:
        self.reads += 1
        item = {"pixel_values": self.pixel_values[row], "sample_ids": row}
        return item if self.labels is None else item | {"labels": int(self.labels[row])}


def images_of(family: str, n: int = 24) -> Images:
    """Random images with random labels, many enough for counts to differ from mask to mask."""
    labels = torch.randint(NUM_LABELS, (n,), generator=torch.Generator().manual_seed(3))
    return Images(3 * tiny_images(family, n), labels.tolist())


@torch.no_grad()
def right_answers(model: PWLForImageClassification, data: Images, mask: str) -> list[bool]:
    """Image by image, along one path that shares nothing."""
    logits = [model(image[None], sources=mask).logits[0] for image in data.pixel_values]
    return [int(found.argmax()) == label for found, label in zip(logits, data.labels, strict=True)]


def save_digits_model(folder: Path) -> Path:
    """A repository of the size of the digits, whose labels are the digits."""
    labels = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
    size = {"image_size": 8, "patch_size": 4, "num_attention_heads": 2, **labels}
    teacher = ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, **size)
    student = ViTConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=4, **size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PWLForImageClassification(PWLConfig(teacher_config=teacher, student_config=student, num_stages=4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder
