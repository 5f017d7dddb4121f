"""The pairs that are measured, and their repositories on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig, ResNetConfig, ViTConfig

from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Args:
        teacher: The teacher's config.
        student: The student's config.
        num_stages: The number of blocks N.
        size: Height and width of the images.
    """

    teacher: PreTrainedConfig
    student: PreTrainedConfig
    num_stages: int
    size: int

    def pixel_values(self) -> torch.Tensor:
        """One image, (1, 3, size, size)."""
        return torch.randn(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))


def pairs() -> dict[str, Pair]:
    """The pairs by name; `tiny` is for trying the suite itself."""
    tiny = {"image_size": 32, "patch_size": 8, "num_attention_heads": 2}
    return {
        "vit-b": Pair(_vit(768, 12, 12), _vit(192, 12, 3), 4, 224),
        "vit-l": Pair(_vit(1024, 24, 16), _vit(384, 12, 6), 4, 224),
        "resnet-50": Pair(
            ResNetConfig(),
            ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512]),
            4,
            224,
        ),
        "vgg": Pair(VGGConfig(), VGGConfig(depths=[1] * 5, hidden_sizes=[32, 64, 128, 256, 256]), 5, 32),
        "tiny": Pair(
            ViTConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, **tiny),
            ViTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, **tiny),
            2,
            32,
        ),
    }


def _vit(width: int, layers: int, heads: int) -> ViTConfig:
    return ViTConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
    )


def repository(pair: Pair, folder: Path) -> Path:
    """The pair's repository with random weights, made if it is not there; `student/` in it is the plain student."""
    if not (folder / "student" / "config.json").is_file():
        torch.manual_seed(0)
        config = PWLConfig(teacher_config=pair.teacher, student_config=pair.student, num_stages=pair.num_stages)
        model = PWLForImageClassification(config).eval()
        model.save_pretrained(folder)
        model.student.save_pretrained(folder / "student")
    return folder
