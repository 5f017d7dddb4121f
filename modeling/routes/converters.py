"""Feature converters: what joins the widths where the source of the features changes.

Notation: a converter leads from d_in to d_out channels; n feature vectors (tokens, or pixels of a map).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ..finite import first_not_finite
from ..transformers_internals import kaiming_uniform_, uniform_


class Converter(nn.Module):
    """An affine map on the channels: a linear layer on tokens, a 1x1 convolution on maps.

    It is never the identity, also at equal widths: the student would have to equal the teacher exactly
    (PWL section 4; the stitching layers of SN-Net, arXiv 2302.06586).

    Args:
        in_channels: d_in.
        out_channels: d_out.
        channels_first: Whether the channels are dimension 1 rather than the last.
    """

    def __init__(self, in_channels: int, out_channels: int, channels_first: bool) -> None:
        super().__init__()
        self.channels_first = channels_first
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as `torch.nn.Linear` does: uniform within 1/sqrt(d_in)."""
        kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.weight.shape[1])
        uniform_(self.bias, -bound, bound)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, ..., d_in) -> (B, ..., d_out), or (B, d_in, H, W) -> (B, d_out, H, W)."""
        if self.channels_first:
            return functional.conv2d(features, self.weight[:, :, None, None], self.bias)
        return functional.linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The widths, for `print(model)`."""
        out_channels, in_channels = self.weight.shape
        return f"in_channels={in_channels}, out_channels={out_channels}, channels_first={self.channels_first}"


class LeastSquares:
    """The affine map that best takes features x to features y, in closed form, batch by batch.

    It minimises sum |W x + b - y|^2 + ridge * s |W|^2, where s is the mean variance of x times n. Sums are
    kept in float64.

    Args:
        in_channels: Width of x.
        out_channels: Width of y.
        ridge: The relative weight of the penalty; it decides where x does not span its space.
        name: What is fitted, for errors.
    """

    def __init__(self, in_channels: int, out_channels: int, ridge: float = 1e-4, name: str = "the map") -> None:
        self.name = name
        self.ridge = ridge
        self.count = 0
        self.sum_x = torch.zeros(in_channels, dtype=torch.float64)
        self.sum_y = torch.zeros(out_channels, dtype=torch.float64)
        self.sum_xx = torch.zeros(in_channels, in_channels, dtype=torch.float64)
        self.sum_xy = torch.zeros(in_channels, out_channels, dtype=torch.float64)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in n more pairs: x (n, d_in), y (n, d_out), of any floating dtype and device."""
        x, y = x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)
        self.count += len(x)
        self.sum_x += x.sum(0)
        self.sum_y += y.sum(0)
        self.sum_xx += x.T @ x
        self.sum_xy += x.T @ y

    def solve(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """W (d_out, d_in) and b (d_out).

        Args:
            dtype: Theirs; the solution is found in float64.

        Raises:
            ValueError: If nothing was added; if features or the solution are not finite in `dtype`.
        """
        if self.count == 0:
            raise ValueError("a least-squares fit needs at least one image")
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        covariance = self.sum_xx - self.count * torch.outer(mean_x, mean_x)
        cross = self.sum_xy - self.count * torch.outer(mean_x, mean_y)
        # Directions that float32 features do not resolve (a constant channel) are noise: they get no weight.
        noise = torch.finfo(torch.float32).eps ** 2 * self.sum_xx.diagonal().mean()
        penalty = (self.ridge * covariance.diagonal().mean()).clamp_min(noise.clamp_min(torch.finfo(noise.dtype).tiny))
        system = covariance + penalty * torch.eye(len(mean_x), dtype=torch.float64)
        if first_not_finite([("", system), ("", cross)]) is not None:
            raise ValueError(
                f"{self.name} cannot be fitted: features of these images are NaN or infinite; look for weights that are"
            )
        weight, failed = torch.linalg.solve_ex(system, cross)
        bias = mean_y - weight.T @ mean_x
        found = weight.T.to(dtype), bias.to(dtype)
        if failed or first_not_finite((("weight", found[0]), ("bias", found[1]))) is not None:
            raise ValueError(
                f"{self.name} cannot be fitted in {dtype}: its solution is not finite; give more images, a larger "
                "ridge or another dtype"
            )
        return found


def channel_rows(features: torch.Tensor, channels_first: bool) -> torch.Tensor:
    """Features as rows of channels: (B, L, C) or (B, C, H, W) -> (n, C)."""
    if channels_first:
        features = features.movedim(1, -1)
    return features.reshape(-1, features.shape[-1])
