"""The teacher and the student of the digits: two ViTs of a few thousand parameters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from pwl_hf.data.digits import LABELS, SIZE
from pwl_hf.training.arguments import DigitsArguments

# 16 patches of 2x2 pixels: with the class token, sequences of 17.
_PATCH = 2
_FEED_FORWARD = 2
# At these widths ViT's usual 0.02 learns slowly: in a trial of 40 epochs a teacher came to 87 %, with this to 97 %.
_INITIALIZER_RANGE = 0.1


def new_teacher(arguments: DigitsArguments) -> ViTForImageClassification:
    """A teacher with fresh weights, of the size that the arguments ask for."""
    config = ViTConfig(
        image_size=SIZE,
        patch_size=_PATCH,
        num_channels=3,
        initializer_range=_INITIALIZER_RANGE,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
        **_size(arguments.teacher_width, arguments.teacher_layers, arguments.teacher_heads),
    )
    return ViTForImageClassification(config)


def load_teacher(name: str) -> PreTrainedModel:
    """A teacher from a folder or the Hub, in eval mode.

    Raises:
        ValueError: If it is no ViT, or does not have ten labels.
    """
    config = AutoConfig.from_pretrained(name)
    if config.model_type != "vit":
        raise ValueError(f"teacher {name!r} is of model_type {config.model_type!r}; this script trains ViTs: give one")
    if config.num_labels != len(LABELS):
        raise ValueError(f"teacher {name!r} has {config.num_labels} labels, the digits have {len(LABELS)}")
    model: PreTrainedModel = AutoModelForImageClassification.from_pretrained(name)
    return model


def load_processor(name: str) -> BaseImageProcessor:
    """A teacher's image processor: the student and every stage see images as the teacher does.

    Raises:
        OSError: If there is none.
    """
    processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
    return processor


def new_student(
    arguments: DigitsArguments, teacher: PreTrainedConfig, device: torch.device
) -> ViTForImageClassification:
    """A student with fresh weights, of the size that the arguments ask for.

    Args:
        arguments: The arguments.
        teacher: The teacher's config: images, patches and labels are as it says.
        device: Where the student is made.
    """
    size = _size(arguments.student_width, arguments.student_layers, arguments.student_heads)
    config = ViTConfig.from_dict(teacher.to_dict() | size | {"initializer_range": _INITIALIZER_RANGE})
    with device:
        return ViTForImageClassification(config)


def _size(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": _FEED_FORWARD * width,
    }
