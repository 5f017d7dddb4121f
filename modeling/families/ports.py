"""What stands in a segment for modules that are not its own, and passes features along.

A network's own forward runs over them (see `driven`). What comes into the segment, and what comes out of its blocks, is
that of one call: the `Flow` of the thread that runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn

from .base import settings_of


@dataclass
class Flow:
    """What comes into a segment, and what has come out of its blocks.

    Args:
        features: The features after the block before it, in its own width; None where it begins its network.
        outputs: The output of each of its blocks so far.
    """

    features: torch.Tensor | None
    outputs: list[torch.Tensor] = field(default_factory=list)


FLOW: ContextVar[Flow] = ContextVar("pwl_flow")


class Skipped(nn.Module):
    """A layer of another segment: it passes its input on, or puts in the features that came over the boundary.

    Args:
        like: The layer: a base may ask its layers of which kind they are, to give each the right mask.
        puts_in: Whether it is the one before the segment's first.
        gives_tuples: Whether the layer returns a tuple, the features first.
    """

    def __init__(self, like: nn.Module, *, puts_in: bool, gives_tuples: bool) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in settings_of(like).items() if name not in vars(self)})
        self.puts_in, self.gives_tuples = puts_in, gives_tuples

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The features, as the layer would give its own."""
        given = FLOW.get().features
        found = given if self.puts_in and given is not None else hidden_states
        return (found, None) if self.gives_tuples else found


class Tap(nn.Module):
    """The last module of a block, whose output is noted."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own."""
        output = self.layer(*args, **kwargs)
        FLOW.get().outputs.append(output[0] if isinstance(output, tuple) else output)
        return output


class Through(nn.Module):
    """What changes features between or after layers that are those of other segments."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Its input."""
        return hidden_states


class StandIn(nn.Module):
    """A module of another segment that comes before the layers: it gives something of the right shape.

    No layer reads that: the features come in after it.

    Args:
        kind: What it gives, a name of `STAND_INS`.
        like: The module: a base may ask it for its size.
        config: The network's config, which shapes depend on.
    """

    def __init__(self, kind: str, like: nn.Module, config: Any) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in settings_of(like).items() if name not in vars(self)})
        self.kind, self.config = kind, config

    @property
    def patch_embeddings(self) -> Any:
        """What ViT and kin ask for its dtype before they call their embedder."""
        return SimpleNamespace(projection=SimpleNamespace(weight=FLOW.get().features))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Something of the shape, dtype and device that its network goes on with."""
        features = FLOW.get().features
        if features is None:
            raise RuntimeError("a segment that does not begin its network was called without features")
        return STAND_INS[self.kind](features, self.config, args)


def _empty(features: torch.Tensor, *_: Any) -> torch.Tensor:
    # A tensor of its own: some networks write into what their embedder gives.
    return torch.empty_like(features)


def _transposed(features: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(features).transpose(1, 2)


def _pair(features: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(features), torch.empty_like(features)


def _second(features: torch.Tensor, config: Any, args: tuple[Any, ...]) -> Any:
    return args[1]


def _as_given(features: torch.Tensor, config: Any, args: tuple[Any, ...]) -> Any:
    return args[0]


def _frames(features: torch.Tensor, config: Any, args: tuple[Any, ...]) -> torch.Tensor:
    """(B, width, frames), as convolutions over waveforms (B, samples) give them."""
    return features.new_empty(features.shape[0], features.shape[-1], num_frames(args[0].shape[-1], config))


def num_frames(length: Any, config: Any) -> Any:
    """How many frames convolutions make of waveforms of some length, a number or a tensor of numbers."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
    return length


# By kind: from the features, the config and what the module was called with.
STAND_INS: Mapping[str, Callable[[torch.Tensor, Any, tuple[Any, ...]], Any]] = {
    "features": _empty,
    "transposed": _transposed,
    "pair": _pair,
    "second": _second,
    "as given": _as_given,
    "frames": _frames,
}


class Window(NamedTuple):
    """How a convolution goes over an image or a map.

    Args:
        kernel: Its size (height, width).
        stride: Its stride.
        padding: What is added to each side.
        multiple: Images are padded to a multiple of this before.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    multiple: tuple[int, int] = (1, 1)

    def after(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width of what it makes of a size."""
        padded = (-(-side // multiple) * multiple for side, multiple in zip(size, self.multiple, strict=True))
        height, width = (
            (side + 2 * padding - kernel) // stride + 1
            for side, kernel, stride, padding in zip(padded, self.kernel, self.stride, self.padding, strict=True)
        )
        return height, width


class Patches(nn.Module):
    """A module of another segment that makes tokens of an image or a map: it gives as many, with nothing in them.

    Args:
        window: How the module goes over the image.
        gives: What it gives besides the tokens, a name of `GIVEN`.
    """

    def __init__(self, window: Window, gives: str) -> None:
        super().__init__()
        self.window, self.gives = window, gives

    def forward(self, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Tokens, and how many rows and columns of them there are, as the network asks for it."""
        height, width = self.window.after((pixels.shape[-2], pixels.shape[-1]))
        return GIVEN[self.gives](pixels.new_empty(pixels.shape[0], height * width, 1), height, width)


def _with_grid(tokens: torch.Tensor, height: int, width: int) -> Any:
    return tokens, (height, width)


def _with_sides(tokens: torch.Tensor, height: int, width: int) -> Any:
    return tokens, height, width


def _without_masks(tokens: torch.Tensor, height: int, width: int) -> Any:
    return tokens, None, None


# By name: from the tokens (B, height x width, 1), and the grid that they are in.
GIVEN: Mapping[str, Callable[[torch.Tensor, int, int], Any]] = {
    "grid": _with_grid,
    "sides": _with_sides,
    "no masks": _without_masks,
}
