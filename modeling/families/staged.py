"""Networks that take images and see them at several resolutions, one after the other (see `driven`).

A unit is a residual layer, or, where those cannot be told apart from outside, a whole level. What leads from one level
to the next belongs to the first unit of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..bounds import check_depth
from .base import Boundary, pair
from .images import ImageFamily
from .ports import Patches, Through, Window

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Unit(NamedTuple):
    """What comes out of a unit.

    Args:
        width: Its channels.
        stride: How many pixels of the image lie between two of its features, in height as in width.
    """

    width: int
    stride: int


Levels = Sequence[Sequence[Unit]]


@dataclass(frozen=True, eq=False)
class StagedFamily(ImageFamily):
    """A family of networks of several levels: `layer_list` is the path of a unit, with its `{level}` and `{place}`.

    Paths may also name the number of the unit in the network, `{unit}`, and of the level before, `{previous}`.

    Args:
        opens: Paths of what leads to a level; at the first, to the first unit.
        closes: Paths of what follows the last unit of a level.
        gives: What of these, and of what comes before the layers, makes tokens of a map, and what it gives besides
            them, a name of `ports.GIVEN`.
        tokens: How its features are laid out where they are tokens, in words; empty where they are maps.
    """

    before: tuple[str, ...] = ()
    tells_channels: bool = False
    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    gives: Mapping[str, str] = field(default_factory=dict)
    tokens: str = ""

    # --- What a kind of network tells of itself ------------------------------------------------------------------

    def levels(self, config: Any) -> Levels:
        """The units of each level: by default each level has one width, and half the resolution of the one before."""
        stem = self.stem_of(config)
        return uniform(config.depths, config.hidden_sizes, [stem * 2**level for level in range(len(config.depths))])

    def stem_of(self, config: Any) -> int:
        """How many pixels lie between two features of the first level."""
        return 4

    def window(self, config: Any, level: int) -> Window:
        """How what leads to a level goes over the image or map before it, where that makes tokens of it."""
        raise TypeError(f"{self.model_type!r} makes no tokens of maps")

    # --- What follows from that ----------------------------------------------------------------------------------

    def check_config(self, config: PreTrainedConfig) -> None:
        super().check_config(config)
        for unit in (unit for level in self._levels(config) for unit in level):
            if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in unit):
                raise ValueError(f"a unit has width {unit.width!r} and stride {unit.stride!r}: both must be at least 1")

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return tuple(len(level) for level in self._levels(config))

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        level, place = self.level(config, units - 1)
        unit = self._levels(config)[level][place]
        geometry = f"1/{unit.stride} of the input's resolution{', ' if self.tokens else ''}{self.tokens}"
        return Boundary(unit.width, geometry, channels_first=not self.tokens, image_size=self.image_size(config))

    def image_size(self, config: PreTrainedConfig) -> tuple[int, int] | None:
        """The size of the only images that a network takes, or None."""
        return None

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return (*super().embedder_paths(config), *self._paths(config, self.opens, 0))

    def layer_path(self, config: PreTrainedConfig, unit: int) -> str:
        return self._paths(config, (self.layer_list,), unit)[0]

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        opening = self.opens if place == 0 and level > 0 else ()
        closing = self.closes if place == self.depths(config)[level] - 1 else ()
        return self._paths(config, (*opening, self.layer_list, *closing), unit)

    def stand_in(self, config: PreTrainedConfig, path: str, like: nn.Module, kind: str) -> nn.Module:
        for template, given in self.gives.items():
            for level in range(len(self._levels(config))):
                if path == self._in_base(template.format(level=level, previous=level - 1)):
                    return Patches(self.window(config, level), given)
        return super().stand_in(config, path, like, kind) if kind == "features" else Through()

    def _levels(self, config: PreTrainedConfig) -> Levels:
        """`levels`, of a config that anyone may have written: what it cannot be made of is a ValueError."""
        try:
            return self.levels(config)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"its levels cannot be told: {error}") from error

    def _paths(self, config: PreTrainedConfig, templates: Sequence[str], unit: int) -> tuple[str, ...]:
        level, place = self.level(config, unit)
        where = {"level": level, "place": place, "unit": unit, "previous": level - 1}
        return tuple(self._in_base(template.format(**where)) for template in templates)


def uniform(depths: Sequence[int], widths: Sequence[int], strides: Sequence[int]) -> Levels:
    """Levels of units of one width and stride each.

    Raises:
        ValueError: If there are not as many of each, or more units than any network has.
    """
    if not len(depths) == len(widths) == len(strides):
        raise ValueError(f"there are {len(depths)} depths, {len(widths)} widths and {len(strides)} strides")
    check_depth("a network", sum(depths))
    return [[Unit(width, stride)] * depth for depth, width, stride in zip(depths, widths, strides, strict=True)]


def rounded(width: float, divisor: int = 8, least: int | None = None) -> int:
    """A width as a multiple, at least nine tenths of it, as mobile networks choose theirs."""
    found = max(divisor if least is None else least, int(width + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * width else found


def square(*sizes: Any) -> Window:
    """A window of kernel, stride, padding and multiple, each a number or (height, width)."""
    return Window(*(pair(size) for size in sizes))
