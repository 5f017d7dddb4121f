"""The pairs that are measured, and their repositories on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedConfig, ResNetConfig, ViTConfig

from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig
from pwl_hf.demo import run_demo
from pwl_hf.exporting import export_repository
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.repository.manifest import MANIFEST_FILE
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.quantising import quantise_repository


@dataclass(frozen=True)
class Pair:
    """A teacher and a student.

    Args:
        teacher: The teacher's config.
        student: The student's config.
        num_blocks: The number of blocks N.
        size: Height and width of the images.
        trained: Whether its repository is the one that `pwl-hf demo` trains; all others have random weights.
    """

    teacher: PreTrainedConfig
    student: PreTrainedConfig
    num_blocks: int
    size: int
    trained: bool = False

    def pixel_values(self) -> torch.Tensor:
        """One image, (1, 3, size, size)."""
        return torch.randn(1, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))


def pairs() -> dict[str, Pair]:
    """The pairs by name; `digits` is for what needs accuracies, `tiny` for trying the suite itself."""
    tiny = {"image_size": 32, "patch_size": 8, "num_attention_heads": 2}
    digits = {"image_size": 8, "patch_size": 2, "num_labels": 10}
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
        # As the recipes vit-digits-teacher and vit-digits say.
        "digits": Pair(
            ViTConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4, **digits),
            ViTConfig(hidden_size=12, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, **digits),
            4,
            8,
            trained=True,
        ),
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
    """The pair's repository, made if it is not there; `student/` in it is the plain student.

    Weights are random, but for a pair that is trained: that takes minutes.
    """
    if not (folder / "student" / "config.json").is_file():
        if pair.trained:
            run_demo(folder, quiet=True, console=Console(stderr=True))
            model = PWLForImageClassification.from_pretrained(folder)
        else:
            torch.manual_seed(0)
            config = PWLConfig(teacher_config=pair.teacher, student_config=pair.student, num_blocks=pair.num_blocks)
            model = PWLForImageClassification(config).eval()
            model.save_pretrained(folder)
        model.student.save_pretrained(folder / "student")
    return folder


def with_tier(folder: Path) -> Path:
    """A copy of a repository that has the teacher in low precision too, made if it is not there."""
    copy = folder.with_name(f"{folder.name}-rungs")
    known = Repository.open(folder).manifest().fingerprint
    if not (copy / MANIFEST_FILE).is_file() or Repository.open(copy).manifest().fingerprint != known:
        quantise_repository(str(folder), copy, target=Target(str(folder)))
    return copy


def with_graphs(folder: Path) -> Path:
    """A repository that has the ONNX graphs of its stages: it gets them if it has none, in half a minute."""
    if not Repository.open(folder).manifest().attachments:
        export_repository(str(folder), target=Target(str(folder)))
    return folder
