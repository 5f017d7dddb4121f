"""VGG with batch normalisation, in the shape of transformers' own image classifiers.

Shapes: B images, C channels, H x W pixels; level r (from 0) works at (H / 2^r) x (W / 2^r).
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

from ..transformers_internals import kaiming_normal_
from .configuration_vgg import VGGConfig


class VGGLayer(nn.Module):
    """Convolution, BatchNorm, activation and, at the end of a level, a max pool of 2."""

    def __init__(self, in_channels: int, out_channels: int, activation: str, pool: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = ACT2FN[activation]
        self.pooler = nn.MaxPool2d(kernel_size=2) if pool else nn.Identity()

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W), or half the size with a pool."""
        hidden_state = self.normalization(self.convolution(hidden_state))
        return self.pooler(self.activation(hidden_state))


class VGGPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the names that transformers looks for."""

    config_class = VGGConfig
    config: VGGConfig
    base_model_prefix = "vgg"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _no_split_modules = ["VGGLayer"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class VGGModel(VGGPreTrainedModel):
    """The convolutions, without a head.

    Args:
        config: Its configuration.
    """

    def __init__(self, config: VGGConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList()
        channels = config.num_channels
        for width, depth in zip(config.hidden_sizes, config.depths, strict=True):
            for i in range(depth):
                self.layers.append(VGGLayer(channels, width, config.hidden_act, pool=i == depth - 1))
                channels = width
        self.pooler = nn.AdaptiveAvgPool2d(1)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple[torch.Tensor, ...]:
        """Features of images.

        Args:
            pixel_values: (B, C, H, W), floating, H and W at least 2^levels.
            output_hidden_states: Also return the output of every layer.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.

        Returns:
            `last_hidden_state` (B, C_last, h, w) and `pooler_output` (B, C_last).
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = []
        hidden_state = pixel_values
        for layer in self.layers:
            hidden_state = layer(hidden_state)
            hidden_states.append(hidden_state)
        output = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=hidden_state,
            pooler_output=self.pooler(hidden_state).flatten(1),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class VGGForImageClassification(VGGPreTrainedModel):
    """VGG with a linear head on the pooled features.

    Args:
        config: Its configuration; `num_labels` sets the head's width.

    Example:

        >>> import torch
        >>> from pwl_hf.modeling import VGGConfig, VGGForImageClassification
        >>> config = VGGConfig(hidden_sizes=[8, 16], depths=[1, 1], num_labels=10)
        >>> VGGForImageClassification(config)(torch.zeros(1, 3, 8, 8)).logits.shape
        torch.Size([1, 10])
    """

    def __init__(self, config: VGGConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vgg = VGGModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels or 0)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> ImageClassifierOutputWithNoAttention | tuple[torch.Tensor, ...]:
        """Logits of images, and the loss if labels are given.

        Args:
            pixel_values: (B, C, H, W), floating.
            labels: (B,) class numbers, int64.
            output_hidden_states: Also return the output of every layer.
            return_dict: Return a `ModelOutput` rather than a tuple; the config's choice by default.
            **kwargs: Taken and ignored, as transformers' own classifiers do.

        Returns:
            `loss` (scalar, or absent), `logits` (B, num_labels), `hidden_states`.
        """
        outputs = self.vgg(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()
