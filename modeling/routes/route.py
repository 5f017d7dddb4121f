"""The path of one mask through the two networks: an immutable thing that a forward pass takes from start to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import nn

from ..families.base import Features, GetModule, Inputs, Segment, SegmentOutput
from ..sources import PartId, Role, Sources
from .batchnorm import Statistics, own_statistics, twin
from .compiling import Compiling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..families.base import Family


class Plan(Protocol):
    """What a route needs to know of a network: see `Blueprint`.

    Attributes:
        family: How the network is cut.
        config: Its config.
        cuts: Its N block ends in units.
        units: The paths of its units, without embedder and head.
    """

    family: Family
    config: PreTrainedConfig
    cuts: list[int]
    units: frozenset[str]

    def paths(self, section: int | str) -> tuple[str, ...]:
        """The paths of a block's modules."""
        ...


# A parent module, the name of a child, and the child.
Place = tuple[nn.Module, str, nn.Module]


class RouteOutput(NamedTuple):
    """What a route gives.

    Args:
        logits: What the last network's head says.
        outputs: The output of each of the N blocks, in the block's own width.
    """

    logits: torch.Tensor
    outputs: tuple[Features, ...]


@dataclass(frozen=True)
class Route:
    """A callable path, holding on to its modules.

    Args:
        sources: Its mask.
        segments: Its runs of blocks of one network, in order.
        converters: After each block, the converter to the next, or None.
        has_own_statistics: Whether the blocks behind the first converter have BatchNorm statistics of the mask's.
        networks: The children of the model that its blocks stand in, by name.
        places: Where its modules were found: a parent, the name there, and the module.
    """

    sources: Sources
    segments: tuple[Segment, ...]
    converters: tuple[nn.Module | None, ...]
    has_own_statistics: bool = False
    networks: Mapping[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    places: tuple[Place, ...] = field(default=(), repr=False, compare=False)

    def is_current(self, networks: Mapping[str, nn.Module | None]) -> bool:
        """Whether all its modules are still where they were found: a user may have put others there.

        Args:
            networks: The children that there are now, by name.
        """
        return all(networks.get(name) is network for name, network in self.networks.items()) and all(
            parent._modules.get(name) is module for parent, name, module in self.places
        )

    def __call__(self, inputs: Inputs) -> RouteOutput:
        """Run the path.

        Args:
            inputs: What the model was called with, by the names of its `forward`.
        """
        features, logits = None, None
        outputs: list[Features] = []
        for segment in self.segments:
            found, logits = segment(self.convert(segment.first, features), inputs)
            outputs += found
            features = outputs[-1]
        return RouteOutput(logits, tuple(outputs))  # type: ignore[arg-type]

    def run_block(self, block: int, features: Features | None, inputs: Inputs) -> SegmentOutput:
        """Run block `block` (from 1) alone, through the converter before it.

        Args:
            block: The block.
            features: The output of the block before it; None for the first.
            inputs: As in a call.
        """
        return self.segment_of(block)(self.convert(block, features), inputs)

    def segment_of(self, block: int) -> Segment:
        """Block `block` (from 1) as a segment of its own."""
        return next(segment for segment in self.segments if segment.last >= block).block(block)

    def convert(self, block: int, features: Features | None) -> Features | None:
        """The output of the block before `block` as that takes it, through the converter between them."""
        converter = self.converters[block - 2] if block > 1 else None
        if converter is None or features is None:
            return features
        return features._replace(tensor=converter(features.tensor))


def build_route(
    sources: Sources,
    blueprints: Mapping[Role, Plan],
    networks: Mapping[Role, PreTrainedModel],
    converters: Mapping[PartId, nn.Module],
    statistics: Statistics | None = None,
    *,
    low_precision: nn.Module | None = None,
    made: Mapping[str, nn.Module] | None = None,
    compiling: Compiling | None = None,
    training: bool = False,
    estimate: bool = False,
) -> Route:
    """The route of a mask over what is resident, and what is about to be.

    Args:
        sources: The mask.
        blueprints: The plan of each network.
        networks: The networks that the mask needs.
        converters: The converters that the mask needs.
        statistics: BatchNorm statistics of the blocks behind the first converter, if they have their own.
        low_precision: Where the teacher's blocks in low precision stand, if the mask has such.
        made: Modules that are not in the networks yet, by full name; they come before those that are.
        compiling: Arguments of `nn.Module.compile` for what stands in for a compiled module.
        training: Whether the student trains. What of a mixed path has no statistics of the mask's then gets
            copies of its own, so that its passes leave the networks' running statistics alone.
        estimate: Build the path that estimates `statistics` (see `batchnorm.twin`).
    """
    ahead = made or {}
    places: dict[tuple[int, str], Place] = {}

    def note(parent: nn.Module, name: str, module: nn.Module) -> None:
        places[id(parent), name] = parent, name, module

    def getter(block: int) -> GetModule:
        role = sources.roles[block - 1]
        network, units = networks[role], blueprints[role].units
        own = blueprints[role].paths(block) if block in sources.low_blocks else ()

        def get(path: str) -> nn.Module:
            if not path:
                return network
            # 1. The module, and each place on the way to it. What blocks share stands in the network alone.
            stand, root = (low_precision, "quantised") if path in own and low_precision is not None else (network, role)
            name, ahead_name = f"{role}.{path}", f"{root}.{path}"
            module = ahead[ahead_name] if ahead_name in ahead else stand.get_submodule(path)
            *above, last_name = path.split(".")
            parent: nn.Module = stand
            for step in above:
                child: nn.Module = parent._modules[step]  # type: ignore[assignment]
                note(parent, step, child)
                parent = child
            note(parent, last_name, module)
            # 2. Its twin, where the mask has other statistics than the network.
            other = module
            if statistics is not None and block in sources.converted_blocks:
                other = twin(module, name, statistics, estimate=estimate)
            elif training and sources.is_mixed:
                other = twin(module, name, own_statistics(module, name))
            if other is not module:
                # A twin has its own list of children: one that is replaced in the original is not in it.
                for part in module.modules():
                    for child_name, child in part.named_children():
                        note(part, child_name, child)
                if compiling is not None and path in units:
                    compiling.apply(other)
            return other

        return get

    segments = []
    for role, run in groupby(range(1, len(sources) + 1), key=lambda block: sources.roles[block - 1]):
        first, *rest = run
        plan = blueprints[role]
        last = rest[-1] if rest else first
        segments.append(plan.family.segment(plan.config, plan.cuts, first, last, getter))
    at_boundary = {i: converters[PartId(direction, i)] for i, direction in sources.changes}
    stands: dict[str, nn.Module] = {role: networks[role] for role in networks}
    if low_precision is not None:
        stands["quantised"] = low_precision
    return Route(
        sources=sources,
        segments=tuple(segments),
        converters=tuple(at_boundary.get(i) for i in range(1, len(sources) + 1)),
        has_own_statistics=bool(statistics),
        networks=stands,
        places=tuple(places.values()),
    )


def statistics_at_rest(
    masks: Sequence[Sources], blueprints: Mapping[Role, Plan], networks: Callable[[Role], nn.Module]
) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics of mean 0 and variance 1 for every BatchNorm behind a mask's first converter.

    Returns:
        By mask, by full name. Masks that begin alike have the same tensors as far as they do: what is estimated
        there for one of them is estimated for all.
    """
    of_beginning: dict[str, dict[str, torch.Tensor]] = {}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for sources in masks:
        found[sources.mask] = {}
        for block in sources.converted_blocks:
            beginning, role = sources.mask[:block], sources.roles[block - 1]
            if beginning not in of_beginning:
                of_beginning[beginning] = {}
                for path in blueprints[role].paths(block):
                    module = networks(role).get_submodule(path)
                    of_beginning[beginning] |= own_statistics(module, f"{role}.{path}", reset=True)
            found[sources.mask] |= of_beginning[beginning]
    return found
