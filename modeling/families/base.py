"""What a family of networks must tell so that it can be cut into blocks.

A family is one small file. It names the modules of the **original** transformers model by their paths. A hand-cut one
(`Family`) says in which order to call them; in one that is data (`driven.DrivenFamily`) the network's own forward does.
It never builds a layer of its own. Everything it returns is a callable over modules fetched through `get`, so a route
holds on to its modules whatever becomes of the model they came from.

Shapes: B samples; a feature is (B, tokens, width), or (B, width, height, width) with channels first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from ..transformers_internals import is_activation

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

# Gives the module at a path of a network.
GetModule = Callable[[str], Any]
# What a model is called with, by the names of its `forward`: `pixel_values`, or `input_ids` and `attention_mask`.
Inputs = Mapping[str, Any]
# What networks take that have their images cut into patches before; see `Family.takes`.
PATCHES = "patches of images"


class Features(NamedTuple):
    """What flows between units: the features, and for windowed attention the token grid (h, w)."""

    tensor: torch.Tensor
    grid: tuple[int, int] | None = None


class SegmentOutput(NamedTuple):
    """What a segment gives.

    Args:
        outputs: The output of each of its blocks, in the network's own width.
        logits: What the network's head says of the last one, if the segment ends with the network.
    """

    outputs: tuple[Features, ...]
    logits: torch.Tensor | None


class Segment(Protocol):
    """A run of blocks of one network, on a route."""

    @property
    def first(self) -> int:
        """Its first block (from 1)."""
        ...

    @property
    def last(self) -> int:
        """Its last block."""
        ...

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The modules that its blocks are made of, by their paths in the network."""
        ...

    def __call__(self, features: Features | None, inputs: Inputs) -> SegmentOutput:
        """Run it.

        Args:
            features: What comes out of the block before it, in the network's own width; None where it begins.
            inputs: What the model was called with.
        """
        ...

    def block(self, number: int) -> Segment:
        """One of its blocks (from 1) alone."""
        ...


@dataclass(frozen=True)
class HandCutSegment:
    """Blocks that a family's own callables run, one unit after the other; see `Segment`."""

    first: int
    last: int
    embedder: Callable[[Inputs], Features] | None
    blocks: tuple[tuple[Callable[[Features], Features], ...], ...]
    head: Callable[[Features], torch.Tensor] | None
    modules_of: Mapping[int, Mapping[str, nn.Module]] = field(default_factory=dict, repr=False)

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """See `Segment`."""
        blocks = range(self.first, self.last + 1)
        return {path: module for block in blocks for path, module in self.modules_of[block].items()}

    def __call__(self, features: Features | None, inputs: Inputs) -> SegmentOutput:
        """See `Segment`."""
        if self.embedder is not None:
            features = self.embedder(inputs)
        outputs = []
        for units in self.blocks:
            for unit in units:
                features = unit(features)  # type: ignore[arg-type]
            outputs.append(features)
        return SegmentOutput(tuple(outputs), self.head(features) if self.head is not None else None)  # type: ignore[arg-type]

    def block(self, number: int) -> HandCutSegment:
        """See `Segment`."""
        if self.first == self.last:
            return self
        embedder = self.embedder if number == self.first else None
        head = self.head if number == self.last else None
        return HandCutSegment(number, number, embedder, (self.blocks[number - self.first],), head, self.modules_of)


@dataclass(frozen=True)
class Boundary:
    """The features after a unit, as the config alone tells them.

    Args:
        width: Channels of the features.
        geometry: Everything that teacher and student must share, in words.
        channels_first: Whether the channels are dimension 1 rather than the last.
        grid: The token grid (h, w) of inputs of the config's own size, where features carry one.
        image_size: The height and width of the only images that the network takes; None if it takes others too.
    """

    width: int
    geometry: str
    channels_first: bool
    grid: tuple[int, int] | None = None
    image_size: tuple[int, int] | None = None

    def joins(self, other: Boundary) -> bool:
        """Whether a converter can lead from these features to others, of the same images."""
        sizes = {self.image_size, other.image_size} - {None}
        return (self.geometry, self.channels_first) == (other.geometry, other.channels_first) and len(sizes) < 2

    def __str__(self) -> str:
        """What must be the same, in words."""
        size = "" if self.image_size is None else " of an image of {}x{} pixels".format(*self.image_size)
        return self.geometry + size


class Family(ABC):
    """How one architecture is cut, by hand. Subclasses are stateless: one instance serves every model.

    Attributes:
        model_type: The `model_type` of its configs.
        interpolates: Whether its embedder takes `interpolate_pos_encoding`.
        code_module: The module with the network's code, where transformers lacks it: it is saved with the teacher.
        layers: The path of the list of all units, where the config's `num_hidden_layers` units are built alike.
        has_optional_paths: Whether some of its paths are not there in every network, and are passed over there.
        takes: What its networks take, if they join with those of other families that take the same; None if not.
        not_exported: Why its networks have no graphs; empty if they have.
        tells_channels: Whether its layers are called as other networks call theirs, so that their names tell which
            channels a tensor reads and writes; see `training.networks.slices.axes`.
    """

    model_type: str
    interpolates: bool = False
    code_module: ClassVar[str | None] = None
    layers: ClassVar[str | None] = None
    has_optional_paths: ClassVar[bool] = False
    takes: str | None = None
    not_exported: str = ""
    tells_channels: bool = True

    @abstractmethod
    def model_class(self) -> type[PreTrainedModel]:
        """The class of its networks, imported when first asked for."""

    def class_for(self, config: PreTrainedConfig, task: str) -> type[PreTrainedModel]:
        """The class of the networks of a config for a task, which is named by its Auto class.

        Raises:
            ValueError: If there is none.
        """
        return self.model_class()

    def check_config(self, config: PreTrainedConfig) -> None:
        """Refuse a config that no network of the family can be built of, without building it.

        Raises:
            ValueError: With the field and its value.
        """
        activation = getattr(config, "hidden_act", None)
        if isinstance(activation, str) and not is_activation(activation):
            raise ValueError(f"hidden_act {activation!r:.100} is no activation that transformers has")
        heads = getattr(config, "num_attention_heads", None)
        width = getattr(config, "hidden_size", None)
        if isinstance(heads, int) and isinstance(width, int) and not hasattr(config, "head_dim") and width % heads:
            raise ValueError(f"hidden_size {width} cannot be divided among num_attention_heads {heads}")

    def seeing(self, config: PreTrainedConfig) -> Any:
        """The config of what sees the images, where that is one within a config, as CLIP has it."""
        return config

    def input_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        """What two networks must have in common to take the same inputs, by the names of the config."""
        # Of a network of the user's own the config may not say it.
        return {"num_channels": getattr(config, "num_channels", 3)}

    def shared_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Paths of modules with tensors that every block needs, such as one bias table for all layers."""
        return ()

    def max_tokens(self, config: PreTrainedConfig) -> int | None:
        """The most tokens that a text may have, by the config; None if it sets no limit."""
        return None

    def loose_parameters(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Names of parameters that no module of a block has, but one that holds them; they go with the first block."""
        return ()

    def layer_skipping(self, config: PreTrainedConfig) -> dict[str, float]:
        """Fields of a config by which whole layers are skipped at random in training, with their rates above 0."""
        return {}

    def not_padding(self, config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
        """Which features of a boundary are of samples, and not of padding.

        Args:
            config: The network's config.
            features: (B, tokens, width).
            inputs: What the model was called with.

        Returns:
            (B, tokens), bool; None if all are.
        """
        return None

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

    def layer_path(self, config: PreTrainedConfig, unit: int) -> str:
        """The one of `unit_paths` that is the unit itself; others lead from one resolution to the next."""
        paths = self.unit_paths(config, unit)
        return next((path for path in paths if path.rpartition(".")[2].isdigit()), paths[0])

    @abstractmethod
    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        """Paths of the modules with tensors after the last unit."""

    @abstractmethod
    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        """A callable from the model's inputs, such as `pixel_values` (B, C, H, W), to features."""

    @abstractmethod
    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        """A callable that runs unit `unit` (from 0)."""

    @abstractmethod
    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        """A callable from the last features to logits (B, num_labels)."""

    def carried(self, config: PreTrainedConfig, level: int) -> int | None:
        """Where the channels of the level before stand in the stream of `level` (from 1), one after the other.

        For shortcuts without parameters, which carry them over as they are. None where a projection leads from one
        level to the next.
        """
        return None

    def segment(
        self, config: PreTrainedConfig, cuts: Sequence[int], first: int, last: int, get: Callable[[int], GetModule]
    ) -> Segment:
        """The blocks `first` to `last` (from 1) of a network.

        Args:
            config: The network's config.
            cuts: Its block ends in units.
            first: The first block.
            last: The last block.
            get: For a block, what its modules are fetched through.
        """
        modules_of: dict[int, dict[str, nn.Module]] = {block: {} for block in range(first, last + 1)}

        def noting(block: int) -> GetModule:
            modules = modules_of[block]

            def get_once(path: str) -> nn.Module:
                if path not in modules:
                    modules[path] = get(block)(path)
                return modules[path]

            return get_once

        ends = [0, *cuts]
        return HandCutSegment(
            first,
            last,
            self.embedder(config, noting(1)) if first == 1 else None,
            tuple(
                tuple(self.unit(config, unit, noting(block)) for unit in range(ends[block - 1], ends[block]))
                for block in range(first, last + 1)
            ),
            self.head(config, noting(last)) if last == len(cuts) else None,
            modules_of,
        )

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


def settings_of(module: nn.Module) -> dict[str, Any]:
    """The plain attributes that a module was given by its constructor, such as its kind of attention or its stride."""
    later = ("training", "gradient_checkpointing")
    own = ((key, value) for key, value in vars(module).items() if not key.startswith("_") and key not in later)
    return {key: value for key, value in own if isinstance(value, str | int | tuple)}


def transformers_class(name: str) -> type[PreTrainedModel]:
    """A class of transformers by name, imported when first asked for."""
    import transformers

    found: type[PreTrainedModel] = getattr(transformers, name)
    return found


def pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """A size of a config as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def pixels_of(inputs: Inputs, module: nn.Module) -> torch.Tensor:
    """The images of a call, (B, C, H, W), in the dtype of a module's parameters, as transformers' own models do it.

    Raises:
        ValueError: If it has none.
    """
    if inputs.get("pixel_values") is None:
        raise ValueError(f"the model takes pixel_values, and was called with {', '.join(inputs) or 'nothing'}")
    parameters: Iterator[Any] = module.parameters()
    pixel_values: torch.Tensor = inputs["pixel_values"]
    return pixel_values.to(next(parameters).dtype)
