"""What a family of networks must tell so that it can be cut into blocks.

A family is one small file. It names the modules of the **original** transformers model by their paths,
and says in which order to call them; it never builds a layer of its own. Everything it returns is a
callable over modules fetched through `get`, so a path holds on to its modules whatever becomes of
the model they came from.

Shapes: B images; a feature is (B, tokens, width) or (B, width, height, width) with channels first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    GetModule = Callable[[str], nn.Module]


class Features(NamedTuple):
    """What flows between units: the features, and for windowed attention the token grid (h, w)."""

    tensor: torch.Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Boundary:
    """The features after a unit, as the config alone tells them.

    Args:
        width: Channels of the features.
        geometry: Everything that teacher and student must share, in words.
        channels_first: Whether the channels are dimension 1 rather than the last.
    """

    width: int
    geometry: str
    channels_first: bool


class Family(ABC):
    """How one architecture is cut. Subclasses are stateless: one instance serves every model.

    Attributes:
        model_type: The `model_type` of its configs.
        interpolates: Whether its embedder takes `interpolate_pos_encoding`.
        code_module: The module with the network's code, where transformers lacks it: it is saved with the teacher.
        layers: The path of the list of all units, where the config's `num_hidden_layers` units are built alike.
    """

    model_type: ClassVar[str]
    interpolates: ClassVar[bool] = False
    code_module: ClassVar[str | None] = None
    layers: ClassVar[str | None] = None

    @abstractmethod
    def model_class(self) -> type[PreTrainedModel]:
        """The image-classification class of the family, imported when first asked for."""

    @abstractmethod
    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        """Units of each resolution level, a unit being the finest residual unit."""

    @abstractmethod
    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        """The features after the first `units` units (at least one)."""

    @abstractmethod
    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Paths of the modules before the first unit."""

    @abstractmethod
    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        """Paths of the modules of unit `unit` (from 0)."""

    @abstractmethod
    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Paths of the modules with tensors after the last unit."""

    @abstractmethod
    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[torch.Tensor, bool | None], Features]:
        """A callable from pixel values (B, C, H, W) and `interpolate_pos_encoding` to features."""

    @abstractmethod
    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        """A callable that runs unit `unit` (from 0)."""

    @abstractmethod
    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        """A callable from the last features to logits (B, num_labels)."""

    def classifier_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Those of `head_paths` whose tensors depend on the labels."""
        return tuple(path for path in self.head_paths(config) if path.startswith("classifier"))

    def num_units(self, config: PreTrainedConfig) -> int:
        """All units of the network."""
        return sum(self.depths(config))

    def level(self, config: PreTrainedConfig, unit: int) -> tuple[int, int]:
        """The resolution level of unit `unit` (from 0), and its place within the level."""
        starts = [0, *accumulate(self.depths(config))]
        level = next(r for r in range(len(starts) - 1) if unit < starts[r + 1])
        return level, unit - starts[level]


def transformers_class(name: str) -> type[PreTrainedModel]:
    """A class of transformers by name, imported when first asked for."""
    import transformers

    found: type[PreTrainedModel] = getattr(transformers, name)
    return found


def in_dtype_of(module: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixel values in the dtype of a module's parameters, as transformers' own models take them."""
    parameters: Iterator[Any] = module.parameters()
    return pixel_values.to(next(parameters).dtype)
