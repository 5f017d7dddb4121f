"""Tiny teachers and students of every type of image network, and what they are called with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from pwl_hf.modeling.families.built_in import IMAGE_FAMILIES
from pwl_hf.modeling.transformers_internals import class_of_task

IMAGES = [family.model_type for family in IMAGE_FAMILIES]
# Their inputs are not one array an image.
NOT_EXPORTED = ("siglip2",)
# Those of transformers' that cannot be cut.
REFUSED = ("dinat", "imagegpt", "perceiver", "pp_lcnet", "shieldgemma2", "timm_wrapper")

_WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 4}
_NARROW = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 3}
_PATCHES: dict[str, Any] = {"image_size": 16, "patch_size": 4}
_TEXT = {**_NARROW, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 1, "eos_token_id": 2}
_OF_TWO = ("clip", "metaclip_2", "siglip", "siglip2")
_BEIT = {
    "use_mean_pooling": True,
    "use_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
    "use_mask_token": True,
}
_OF_PATCHES: dict[str, dict[str, Any]] = {
    "vit": {},
    "deit": {},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3},
    "beit": _BEIT,
    "data2vec-vision": _BEIT,
    "vit_msn": {},
    "ijepa": {},
}
_DEEP, _FLAT = [2, 1, 3, 2], [1, 1, 2, 1]
_WIDTHS = {"teacher": [8, 12, 16, 24], "student": [4, 8, 12, 16]}


def _widths(role: str, times: int = 1) -> list[int]:
    return [times * width for width in _WIDTHS[role]]


def image_config(model_type: str, role: str, **others: Any) -> PreTrainedConfig:
    """The config of a tiny network of images.

    Args:
        model_type: Its type.
        role: `"teacher"`, or `"student"`, which is narrower and, where depth is free, less deep.
        others: Further fields.
    """
    is_teacher = role == "teacher"
    size, depths, widths = _WIDE if is_teacher else _NARROW, _DEEP if is_teacher else _FLAT, _widths(role)
    # A network of transformers' needs more layers in a level than there are levels before it.
    heads, depth = [1, 2, 2, 4], [2, 2, 4] if is_teacher else [1, 2, 3]
    pyramid = {"hidden_sizes": widths, "depths": depths}
    by_type: dict[str, dict[str, Any]] = {
        **{name: {**size, **_PATCHES, **own} for name, own in _OF_PATCHES.items()},
        "resnet": {**pyramid, "embedding_size": widths[0], "layer_type": "basic"},
        "convnext": {**pyramid, "patch_size": 2, "image_size": 32},
        "convnextv2": {**pyramid, "patch_size": 2, "image_size": 32},
        "regnet": {**pyramid, "embedding_size": widths[0], "groups_width": 4},
        "bit": {"hidden_sizes": _widths(role, 2), "depths": depths, "embedding_size": 8, "num_groups": 2},
        "poolformer": {**pyramid, "mlp_ratio": 2.0, "drop_path_rate": 0.1},
        "hgnet_v2": {
            "hidden_sizes": widths,
            "stem_channels": [3, 4, widths[0]],
            "stage_in_channels": [widths[0], *widths[:-1]],
            "stage_mid_channels": [4, 4, 4, 4],
            "stage_out_channels": widths,
            "stage_num_blocks": depths,
            "stage_numb_of_layers": [2, 2, 2, 2],
        },
        "textnet": {
            "stem_out_channels": widths[0],
            "hidden_sizes": [widths[0], *widths],
            "conv_layer_kernel_sizes": [[[3, 3]] * depth for depth in depths],
            "conv_layer_strides": [[2, 1, 1][:depth] for depth in depths],
        },
        "mobilenet_v1": {"depth_multiplier": 0.25 if is_teacher else 0.125},
        "mobilenet_v2": {"depth_multiplier": 0.2 if is_teacher else 0.1, "expand_ratio": 2.0},
        "mobilevit": {
            "hidden_sizes": [8, 12, 16] if is_teacher else [4, 8, 12],
            "neck_hidden_sizes": [4, 8, 8, *widths[1:], 32],
            "num_attention_heads": 2,
            "expand_ratio": 2.0,
            "image_size": 64,
        },
        "mobilevitv2": {
            "width_multiplier": 0.25 if is_teacher else 0.125,
            "n_attn_blocks": [1, 2, 1] if is_teacher else [1, 1, 1],
            "image_size": 64,
        },
        "efficientnet": {
            "in_channels": [32, 8, 12],
            "out_channels": [8, 12, 16],
            "kernel_sizes": [3, 3, 5],
            "strides": [1, 2, 2],
            "num_block_repeats": [1, 2, 1],
            "expand_ratios": [1, 2, 2],
            "hidden_dim": 640 if is_teacher else 320,
            "width_coefficient": 0.5 if is_teacher else 0.25,
            "depth_coefficient": 2.0 if is_teacher else 1.0,
            "depth_divisor": 2,
        },
        "swiftformer": {
            "embed_dims": [16, 16, 32, 64] if is_teacher else [16, 16, 16, 32],
            "depths": depths,
            "mlp_ratio": 2,
        },
        "cvt": {"embed_dim": [8, 12, 16] if is_teacher else [4, 8, 12], "num_heads": [1, 2, 2], "depth": depth},
        "swin": {"embed_dim": widths[0], "depths": depths, "num_heads": heads, "window_size": 2, "patch_size": 2},
        "swinv2": {"embed_dim": widths[0], "depths": depths, "num_heads": heads, "window_size": 2, "patch_size": 2},
        "donut-swin": {"embed_dim": widths[0], "depths": depths, "num_heads": heads, "window_size": 2, "patch_size": 2},
        "focalnet": {"embed_dim": widths[0], "depths": depths, "patch_size": 2},
        "pvt": {"hidden_sizes": _widths(role), "depths": depths, "num_attention_heads": [1, 2, 2, 4]},
        "pvt_v2": {"hidden_sizes": _widths(role), "depths": depths, "num_attention_heads": [1, 2, 2, 4]},
        "segformer": {"hidden_sizes": _widths(role), "depths": depths, "num_attention_heads": [1, 2, 2, 4]},
        "hiera": {"embed_dim": widths[0], "depths": depths, "num_heads": heads, "image_size": [64, 64]},
        "levit": {
            "hidden_sizes": [32, 64, 64] if is_teacher else [16, 32, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [2, 1, 2] if is_teacher else [1, 1, 1],
            "key_dim": [4, 4, 4],
            "image_size": 64,
        },
    }
    if model_type in _OF_TWO:
        seeing = {**size, **_PATCHES, **({"num_patches": 16} if model_type == "siglip2" else {}), **others}
        return AutoConfig.for_model(model_type, num_labels=3, vision_config=seeing, text_config=dict(_TEXT))
    own = by_type[model_type]
    if model_type in ("swin", "swinv2", "donut-swin", "focalnet"):
        own = {"image_size": 32, **own}
    if model_type in ("pvt", "pvt_v2", "segformer"):
        own = {"image_size": 64, **own}
    if model_type == "pvt":
        own = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, **own}
    config = AutoConfig.for_model(model_type, num_labels=3, **{**own, **others})
    # Auto classes ask it of types with two classes.
    config.architectures = [class_of_task(config, "AutoModelForImageClassification").__name__]
    return config


def image_batch(model_type: str, side: int | None = None) -> dict[str, torch.Tensor]:
    """Three images."""
    generator = torch.Generator().manual_seed(0)
    if model_type == "siglip2":
        mask = torch.tensor([[1] * 16, [1] * 12 + [0] * 4, [1] * 9 + [0] * 7])
        shapes = torch.tensor([[4, 4], [3, 4], [3, 3]])
        patches = torch.randn(3, 16, 48, generator=generator) * mask[..., None]
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
    if side is None:
        of_patches = model_type in _OF_PATCHES or model_type in _OF_TWO
        small = ("swin", "swinv2", "donut-swin", "focalnet", "convnext", "convnextv2")
        side = 16 if of_patches else 32 if model_type in small else 64
    return {"pixel_values": torch.randn(3, 3, side, side, generator=generator)}
