"""Networks that take sound: waveforms, spectrograms or features of them. Each is a row of paths (see `driven`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .driven import DrivenFamily
from .ports import Skipped, num_frames

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from .base import Boundary, Inputs


class Wav2Vec2Family(DrivenFamily):
    """As wav2vec 2.0: convolutions over the waveform, then layers, with a norm after them if `do_stable_layer_norm`."""

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return tuple(path for path in super().embedder_paths(config) if path not in self._moved(config))

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return (*self._moved(config), *super().head_paths(config))

    def _moved(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return (f"{self.base}.encoder.layer_norm",) if getattr(config, "do_stable_layer_norm", False) else ()

    def not_padding(self, config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
        return _frames_of_sound(config, features, inputs)


class SqueezedFamily(DrivenFamily):
    """Its layers see a sequence that was made shorter, and is made longer again after them."""

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        return replace(super().boundary(config, units), geometry=f"a sequence squeezed {config.squeeze_factor} times")

    def not_padding(self, config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
        return _frames_of_sound(config, features, inputs, config.squeeze_factor)


class WavLMFamily(Wav2Vec2Family):
    """As wav2vec 2.0, with biases of positions that the first layer makes for all, by a table that it has."""

    def skipped(self, like: nn.Module, puts_in: bool, modules: Mapping[str, nn.Module]) -> Skipped:
        (path,) = self.shared
        table = modules[f"{self.base}.{path}"]
        return _SkippedWithBias(like, puts_in=puts_in, table=table if hasattr(like, "attention") else None)


class _SkippedWithBias(Skipped):
    """An absent layer that hands on biases of positions, and makes them if it is the first.

    Args:
        like: The layer, or what stands for it.
        puts_in: Whether it is the one before the segment's first.
        table: What biases are looked up in, where the layer could be the first.
    """

    def __init__(self, like: nn.Module, *, puts_in: bool, table: nn.Module | None) -> None:
        super().__init__(like, puts_in=puts_in, gives_tuples=True)
        if table is not None:
            # A copy without projections, which belong to another segment.
            self.attention = copy.copy(like.get_submodule("attention"))
            self.attention.__dict__.update(_parameters={}, _modules={"rel_attn_embed": table})

    def forward(self, hidden_states: torch.Tensor, *args: Any, position_bias: Any = None, **kwargs: Any) -> Any:
        """The features and the biases, as the layer would give its own."""
        found, _ = super().forward(hidden_states)
        if position_bias is None:
            batch, length, _ = found.shape
            bias = self.attention.compute_bias(length, length)  # type: ignore[operator]
            position_bias = bias.unsqueeze(0).repeat(batch, 1, 1, 1).view(-1, length, length)
        return found, position_bias


def _frames_of_sound(
    config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs, squeeze: int = 1
) -> torch.Tensor | None:
    """(B, frames): whether a frame is of sound, by a mask over the waveform, (B, samples)."""
    mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor):
        return None
    length = num_frames(mask.sum(-1), config)
    frames = torch.arange(features.shape[1], device=mask.device) * squeeze
    return frames < length[:, None]


def _wav2vec2(model_type: str, base: str, **others: Any) -> dict[str, Any]:
    """What they have in common; SpecAugment (`_mask_hidden_states`) masks what the convolutions give."""
    return {
        "model_type": model_type,
        "base": base,
        "layer_list": "encoder.layers",
        "before": ("feature_extractor", "feature_projection", "encoder.pos_conv_embed", "encoder.layer_norm"),
        "loose": ("masked_spec_embed",),
        "heads": ("projector", "classifier"),
        "takes": "waveforms",
        "equal": ("conv_kernel", "conv_stride"),
        "stand_ins": {"feature_extractor": "frames", "feature_projection": "pair"},
        "once": ("_mask_hidden_states",),
    } | others


_SQUEEZED: dict[str, Any] = {
    "not_exported": "it goes on with the shorter of two lengths, and in a graph that is always the same one",
    "before": ("feature_extractor", "layer_norm", "feature_projection", "encoder.pos_conv_embed", "encoder.layer_norm"),
    "after": ("encoder.upsample",),
    "equal": ("conv_kernel", "conv_stride", "squeeze_factor"),
    "stand_ins": {
        "feature_extractor": "frames",
        "layer_norm": "as given",
        "feature_projection": "as given",
        "encoder.pos_conv_embed": "transposed",
    },
}

AUDIO_FAMILIES = (
    Wav2Vec2Family(**_wav2vec2("wav2vec2", "wav2vec2")),
    Wav2Vec2Family(
        **_wav2vec2("hubert", "hubert", stand_ins={"feature_extractor": "frames"}),
    ),
    Wav2Vec2Family(**_wav2vec2("unispeech", "unispeech")),
    Wav2Vec2Family(**_wav2vec2("unispeech-sat", "unispeech_sat")),
    WavLMFamily(
        **_wav2vec2(
            "wavlm",
            "wavlm",
            shared=("encoder.layers.0.attention.rel_attn_embed",),
            gives_tuples=True,
            not_exported="torch's tracer comes to no end over the lengths of its biases",
        )
    ),
    Wav2Vec2Family(**_wav2vec2("data2vec-audio", "data2vec_audio")),
    Wav2Vec2Family(
        **_wav2vec2(
            "wav2vec2-conformer",
            "wav2vec2_conformer",
            before=("feature_extractor", "feature_projection", "encoder.pos_conv_embed"),
            after=("encoder.layer_norm",),
        )
    ),
    SqueezedFamily(**_wav2vec2("sew", "sew", **_SQUEEZED)),
    SqueezedFamily(
        **_wav2vec2(
            "sew-d",
            "sew_d",
            layer_list="encoder.encoder.layer",
            shared=("encoder.encoder.rel_embeddings", "encoder.encoder.LayerNorm"),
            follows={0: "encoder.encoder.conv"},
            **_SQUEEZED,
        )
    ),
    DrivenFamily(
        **_wav2vec2(
            "wav2vec2-bert",
            "wav2vec2_bert",
            before=("feature_projection",),
            after=("intermediate_ffn",),
            takes="features of speech",
            equal=("feature_projection_input_dim",),
        )
    ),
    DrivenFamily(
        "audio-spectrogram-transformer",
        base="audio_spectrogram_transformer",
        layer_list="layers",
        before=("embeddings",),
        after=("layernorm",),
        takes="spectrograms",
        equal=("num_mel_bins", "max_length", "patch_size", "frequency_stride", "time_stride"),
    ),
    DrivenFamily(
        "whisper",
        base="encoder",
        layer_list="layers",
        before=("conv1", "conv2", "embed_positions"),
        after=("layer_norm",),
        heads=("projector", "classifier"),
        takes="log-mel spectrograms",
        equal=("num_mel_bins", "max_source_positions"),
        stand_ins={"conv1": "transposed", "conv2": "as given"},
    ),
)
