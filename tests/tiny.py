"""Tiny networks of every family, shared by all tests.

Teachers are deeper and wider than students. Everything is seeded and takes milliseconds.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig
from tests.slow import slow_but

FAMILIES = ["vit", "deit", "dinov2", "resnet", "convnext", "swin", "pwl_vgg"]
# Of those that are alike one is enough, but for what is promised of each.
EACH_FAMILY = slow_but(["vit", "resnet", "swin", "pwl_vgg"], FAMILIES)
# Those with BatchNorm, those with attention, those that interpolate position embeddings on demand.
WITH_BATCH_NORM = ["resnet", "pwl_vgg"]
WITH_ATTENTION = ["vit", "deit", "dinov2", "swin"]
INTERPOLATING = ["vit", "deit", "swin"]

NUM_LABELS = 5
_LABELS = dict(enumerate(["ant", "bee", "cat", "dog", "elk"]))
_SIZES = {"vit": 16, "deit": 16, "dinov2": 16, "resnet": 64, "convnext": 32, "swin": 32, "pwl_vgg": 16}
_PLAIN = {"vit": ViTConfig, "deit": DeiTConfig, "dinov2": Dinov2Config}


def _network(model_type: str, *, deep: bool) -> PreTrainedConfig:
    labels = {"id2label": dict(_LABELS), "label2id": {name: i for i, name in _LABELS.items()}}
    size = _SIZES[model_type]
    if model_type in _PLAIN:
        width = 24 if deep else 16
        return _PLAIN[model_type](
            hidden_size=width,
            num_hidden_layers=8 if deep else 4,
            num_attention_heads=2,
            intermediate_size=2 * width,
            mlp_ratio=2,
            image_size=size,
            patch_size=4,
            **labels,
        )
    depths = [2, 1, 3, 2] if deep else [1, 1, 2, 1]
    widths = [8, 12, 16, 24] if deep else [4, 8, 12, 16]
    if model_type == "resnet":
        return ResNetConfig(embedding_size=widths[0], hidden_sizes=widths, depths=depths, layer_type="basic", **labels)
    if model_type == "convnext":
        return ConvNextConfig(hidden_sizes=widths, depths=depths, patch_size=2, image_size=size, **labels)
    if model_type == "pwl_vgg":
        return VGGConfig(hidden_sizes=widths, depths=depths, **labels)
    return SwinConfig(
        image_size=size,
        patch_size=2,
        embed_dim=16 if deep else 8,
        depths=depths,
        num_heads=[2, 2, 4, 4] if deep else [1, 2, 2, 4],
        window_size=2,
        **labels,
    )


def tiny_pair(model_type: str) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """A teacher's and a student's config, of different depth and width, with the same named labels."""
    return _network(model_type, deep=True), _network(model_type, deep=False)


def tiny_config(model_type: str, num_stages: int = 4, **kwargs: object) -> PWLConfig:
    """The config of `tiny_model`."""
    teacher, student = tiny_pair(model_type)
    return PWLConfig(teacher_config=teacher, student_config=student, num_stages=num_stages, **kwargs)


def tiny_model(model_type: str, num_stages: int = 4, seed: int = 0, **kwargs: object) -> PWLForImageClassification:
    """A fully resident model in eval mode, with BatchNorm statistics and biases that are not trivial."""
    return scattered(tiny_config(model_type, num_stages, **kwargs), seed)


def scattered(config: PWLConfig, seed: int = 0) -> PWLForImageClassification:
    """A model of a config, as `tiny_model` makes it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PWLForImageClassification(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 1.5)
                    module.num_batches_tracked.fill_(7)
    return model


def tiny_images(model_type: str, n: int = 2, seed: int = 1) -> torch.Tensor:
    """(n, 3, H, W) of the family's image size."""
    size = _SIZES[model_type]
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
