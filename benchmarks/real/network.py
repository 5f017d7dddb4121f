"""The ResNets of He et al. for CIFAR, in the shape of transformers' own image classifiers.

Shapes: B images, C channels, H x W pixels; level r (from 0) works at (H / 2^r) x (W / 2^r).
"""

# No `from __future__ import annotations`: `@strict` checks the types of fields only where they are not strings.

from itertools import pairwise

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


@strict
class CifarResNetConfig(PreTrainedConfig):
    """A ResNet for small images: a convolution, levels of basic layers, and a linear head on the mean.

    Source: He et al., arXiv 1512.03385, section 4.2, with shortcuts of option A.

    Args:
        num_channels: Channels of the input images.
        hidden_sizes: Channels of each level.
        depths: Layers of each level; ResNet-56 has 9 in each, ResNet-20 has 3.
    """

    model_type = "cifar_resnet"

    num_channels: int = 3
    hidden_sizes: list[int] | tuple[int, ...] = (16, 32, 64)
    depths: list[int] | tuple[int, ...] = (9, 9, 9)

    def validate_levels(self) -> None:
        """Refuse levels that cannot be built."""
        sizes, depths = list(self.hidden_sizes), list(self.depths)
        if len(sizes) != len(depths) or not depths or min(*sizes, *depths, self.num_channels) < 1:
            raise ValueError(f"hidden_sizes and depths must be positive and as many, got {sizes} and {depths}")
        if any(after < before for before, after in pairwise(sizes)):
            raise ValueError(f"a shortcut without parameters takes no channel away: hidden_sizes {sizes} fall")


class Embedder(nn.Module):
    """Convolution, BatchNorm, ReLU: (B, num_channels, H, W) -> (B, C, H, W)."""

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__()
        width = config.hidden_sizes[0]
        self.convolution = nn.Conv2d(config.num_channels, width, kernel_size=3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(width)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of images."""
        return self.normalization(self.convolution(pixel_values)).relu()


class Convolution(nn.Module):
    """A 3x3 convolution and its BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        features: torch.Tensor = self.normalization(self.convolution(hidden_state))
        return features


class BasicLayer(nn.Module):
    """Two convolutions, and a shortcut that has no parameters: every other pixel, and zeros for further channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [Convolution(in_channels, out_channels, stride), Convolution(out_channels, out_channels, 1)]
        )
        self.stride = stride
        before = padding_before(in_channels, out_channels)
        self.padding = (before, out_channels - in_channels - before)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""
        first, second = self.layer
        shortcut = hidden_state
        if self.stride > 1 or any(self.padding):
            shortcut = hidden_state[:, :, :: self.stride, :: self.stride]
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, *self.padding))
        return (second(first(hidden_state).relu()) + shortcut).relu()


class Level(nn.Module):
    """Layers at one resolution; the first one leads there."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, stride: int) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * depth
        self.layers = nn.ModuleList(BasicLayer(widths[i], widths[i + 1], stride if i == 0 else 1) for i in range(depth))


class CifarResNetForImageClassification(PreTrainedModel):
    """The network.

    Args:
        config: Its configuration; `num_labels` sets the head's width.
    """

    config_class = CifarResNetConfig
    config: CifarResNetConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.embedder = Embedder(config)
        before = [config.hidden_sizes[0], *config.hidden_sizes]
        self.levels = nn.ModuleList(
            Level(before[i], width, depth, stride=2 if i else 1)
            for i, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True))
        )
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels or 0)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: object
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits of images (B, num_channels, H, W), and the loss if labels (B,) are given."""
        hidden_state = self.embedder(pixel_values)
        for level in self.levels:
            for layer in level.layers:
                hidden_state = layer(hidden_state)
        logits = self.classifier(pooled(hidden_state))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def pooled(hidden_state: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, C), by the kernel that the published network has, whose bits another's would not be."""
    return nn.functional.avg_pool2d(hidden_state, hidden_state.shape[-2:]).flatten(1)


def padding_before(in_channels: int, out_channels: int) -> int:
    """Where a shortcut puts its channels: how many zeros stand before them."""
    return (out_channels - in_channels) // 2
