"""Tiny teachers and students of every type, and what they are called with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from pwl_hf import PWLForAudioClassification, PWLForImageClassification, PWLForSequenceClassification
from pwl_hf.modeling.families.audio import AUDIO_FAMILIES
from pwl_hf.modeling.families.text import TEXT_FAMILIES
from tests.modeling.image_types import IMAGES, image_batch, image_config

TEXT = [family.model_type for family in TEXT_FAMILIES]
AUDIO = [family.model_type for family in AUDIO_FAMILIES]
NUM_LABELS = 3

_WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 4}
_NARROW = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 3}
_TOKENS = {"vocab_size": 50, "pad_token_id": 0, "max_position_embeddings": 40}
_ENDS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
_RELATIVE = {
    "relative_attention": True,
    "position_buckets": 4,
    "pos_att_type": ["c2p", "p2c"],
    "norm_rel_ebd": "layer_norm",
}
_CONVOLUTIONS = {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
_WAVE = {
    **_CONVOLUTIONS,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "mask_time_length": 2,
}
# What a type needs besides sizes; others are as BERT or wav2vec 2.0.
_OWN: dict[str, dict[str, Any]] = {
    "electra": {"embedding_size": 8},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, **_ENDS},
    "deberta-v2": {**_RELATIVE, "conv_kernel_size": 3},
    "deberta": {"relative_attention": True, "max_relative_positions": 8, "pos_att_type": ["c2p", "p2c"]},
    "mistral": {"sliding_window": 4},
    "gemma": {"head_dim": 4},
    "gemma2": {"head_dim": 4, "sliding_window": 4},
    "gemma3_text": {"head_dim": 4, "sliding_window": 4},
    "qwen3": {"head_dim": 4},
    "wav2vec2-bert": {"feature_projection_input_dim": 6, "conv_depthwise_kernel_size": 3},
    "wav2vec2-conformer": {**_WAVE, "conv_depthwise_kernel_size": 3},
    "sew": {**_WAVE, "squeeze_factor": 2},
    "sew-d": {**_WAVE, "squeeze_factor": 2, **_RELATIVE, "max_position_embeddings": 40},
    "audio-spectrogram-transformer": {
        "max_length": 24,
        "num_mel_bins": 8,
        "patch_size": 4,
        "frequency_stride": 4,
        "time_stride": 4,
    },
    "whisper": {
        "vocab_size": 10,
        "pad_token_id": 0,
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "classifier_proj_size": 8,
        "decoder_layers": 1,
        "decoder_attention_heads": 1,
    },
}
# The names of sizes, where they are others.
_NAMES = {
    "distilbert": ("dim", "hidden_dim", "n_heads", "n_layers"),
    "opt": ("hidden_size", "ffn_dim", "num_attention_heads", "num_hidden_layers"),
    "whisper": ("d_model", "encoder_ffn_dim", "encoder_attention_heads", "encoder_layers"),
}


def network_config(model_type: str, role: str, **others: Any) -> PreTrainedConfig:
    """The config of a tiny network.

    Args:
        model_type: Its type.
        role: `"teacher"`, or `"student"`, which is narrower and less deep.
        others: Further fields.
    """
    if model_type in IMAGES:
        return image_config(model_type, role, **others)
    size = _WIDE if role == "teacher" else _NARROW
    own = {**_TOKENS, **_OWN.get(model_type, {})} if model_type in TEXT else _OWN.get(model_type, _WAVE)
    if AutoConfig.for_model(model_type).to_dict().get("num_key_value_heads") is not None:
        own = {"num_key_value_heads": size["num_attention_heads"] // 2, "bos_token_id": 1, "eos_token_id": 2, **own}
    if model_type == "opt":
        own = {**own, "word_embed_proj_dim": 8 + size["hidden_size"]}
    names = dict(zip(_WIDE, _NAMES.get(model_type, tuple(_WIDE)), strict=True))
    sizes = {names[name]: value for name, value in size.items()}
    return AutoConfig.for_model(model_type, num_labels=NUM_LABELS, **{**sizes, **own, **others})


def model_class(model_type: str) -> type[Any]:
    """The PWL model of a type."""
    if model_type in IMAGES:
        return PWLForImageClassification
    return PWLForAudioClassification if model_type in AUDIO else PWLForSequenceClassification


def batch(model_type: str) -> dict[str, torch.Tensor]:
    """Three samples: images, or others of different lengths, padded."""
    if model_type in IMAGES:
        return image_batch(model_type)
    generator = torch.Generator().manual_seed(0)
    if model_type in TEXT:
        input_ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 0, 0, 0], [20, 21, 22, 0, 0, 0, 0, 0]])
        return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}
    if model_type == "audio-spectrogram-transformer":
        return {"input_values": torch.randn(3, 24, 8, generator=generator)}
    if model_type == "whisper":
        return {"input_features": torch.randn(3, 8, 24, generator=generator)}
    name, shape = ("input_features", (3, 12, 6)) if model_type == "wav2vec2-bert" else ("input_values", (3, 200))
    sound, mask = torch.randn(*shape, generator=generator), torch.ones(shape[:2], dtype=torch.long)
    for sample, part in ((1, 0.6), (2, 0.8)):
        mask[sample, int(part * shape[1]) :] = 0
        sound[sample, int(part * shape[1]) :] = 0
    return {name: sound, "attention_mask": mask}
