"""The path of one mask through the two networks: an immutable thing that a forward pass takes from start to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ..sources import ROLE_OF, Piece, Role, Sources
from .batchnorm import Statistics, own_statistics, twin
from .compiling import Compiling
from .cuts import units_of_block

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from ..families.base import Family, Features


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

    def paths(self, block: int) -> tuple[str, ...]:
        """The paths of a block's modules."""
        ...


# A parent module, the name of a child, and the child.
Place = tuple["nn.Module", str, "nn.Module"]


@dataclass(frozen=True)
class Route:
    """A callable path, holding on to its modules.

    Args:
        sources: Its mask.
        embedder: Pixel values and `interpolate_pos_encoding` -> features.
        blocks: For each block, its units in order.
        converters: After each block, the converter to the next, or None.
        head: Features -> logits.
        has_own_statistics: Whether the blocks behind the first converter have BatchNorm statistics of the mask's.
        networks: The networks that its blocks are of.
        places: Where its modules were found: a parent, the name there, and the module.
    """

    sources: Sources
    embedder: Callable[[torch.Tensor, bool | None], Features]
    blocks: tuple[tuple[Callable[[Features], Features], ...], ...]
    converters: tuple[nn.Module | None, ...]
    head: Callable[[Features], torch.Tensor]
    has_own_statistics: bool = False
    networks: Mapping[Role, nn.Module] = field(default_factory=dict, repr=False, compare=False)
    places: tuple[Place, ...] = field(default=(), repr=False, compare=False)

    def is_current(self, networks: Mapping[str, nn.Module | None]) -> bool:
        """Whether all its modules are still where they were found: a user may have put others there.

        Args:
            networks: The networks that there are now, by role.
        """
        return all(networks.get(role) is network for role, network in self.networks.items()) and all(
            parent._modules.get(name) is module for parent, name, module in self.places
        )

    def __call__(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None
    ) -> tuple[torch.Tensor, tuple[Features, ...]]:
        """Run the path.

        Args:
            pixel_values: (B, C, H, W), floating.
            interpolate_pos_encoding: As in transformers, for families that have it.

        Returns:
            Logits (B, num_labels), and the output of each block in the block's own width.
        """
        features = self.embedder(pixel_values, interpolate_pos_encoding)
        outputs = []
        for block in range(1, len(self.blocks) + 1):
            features = self.run_block(block, features)
            outputs.append(features)
        return self.head(features), tuple(outputs)

    def run_block(self, block: int, features: Features) -> Features:
        """Run block `block` (from 1) on the output of the block before it, through the converter between them."""
        features = self.convert(block, features)
        for unit in self.blocks[block - 1]:
            features = unit(features)
        return features

    def convert(self, block: int, features: Features) -> Features:
        """The output of the block before `block` as that takes it, through the converter between them."""
        converter = self.converters[block - 2] if block > 1 else None
        return features if converter is None else features._replace(tensor=converter(features.tensor))


def build_route(
    sources: Sources,
    blueprints: Mapping[Role, Plan],
    networks: Mapping[Role, PreTrainedModel],
    converters: Mapping[Piece, nn.Module],
    statistics: Statistics | None = None,
    *,
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
        made: Modules that are not in the networks yet, by full name; they come before those that are.
        compiling: Arguments of `nn.Module.compile` for what stands in for a compiled module.
        training: Whether the student trains. What of a mixed path has no statistics of the mask's then gets
            copies of its own, so that its passes leave the networks' running statistics alone.
        estimate: Build the path that estimates `statistics` (see `batchnorm.twin`).
    """
    ahead = made or {}
    units = {role: blueprints[role].units for role in networks}
    places: dict[tuple[int, str], Place] = {}

    def note(parent: nn.Module, name: str, module: nn.Module) -> None:
        places[id(parent), name] = parent, name, module

    def getter(block: int) -> Callable[[str], nn.Module]:
        role = ROLE_OF[sources.mask[block - 1]]
        network = networks[role]

        def get(path: str) -> nn.Module:
            name = f"{role}.{path}"
            module = ahead[name] if name in ahead else network.get_submodule(path)
            *above, last_name = path.split(".")
            parent: nn.Module = network
            for step in above:
                child: nn.Module = parent._modules[step]  # type: ignore[assignment]
                note(parent, step, child)
                parent = child
            note(parent, last_name, module)
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
                if compiling is not None and path in units[role]:
                    compiling.apply(other)
            return other

        return get

    plans = [blueprints[ROLE_OF[letter]] for letter in sources.mask]
    first, last = plans[0], plans[-1]
    blocks = []
    for block, plan in enumerate(plans, start=1):
        get = getter(block)
        blocks.append(tuple(plan.family.unit(plan.config, u, get) for u in units_of_block(plan.cuts, block)))
    at_boundary = {i: converters[Piece(direction, i)] for i, direction in sources.changes}
    return Route(
        sources=sources,
        embedder=first.family.embedder(first.config, getter(1)),
        blocks=tuple(blocks),
        converters=tuple(at_boundary.get(i) for i in range(1, len(plans) + 1)),
        head=last.family.head(last.config, getter(len(plans))),
        has_own_statistics=bool(statistics),
        networks=networks,
        places=tuple(places.values()),
    )


def statistics_at_rest(
    masks: Sequence[Sources], blueprints: Mapping[Role, Plan], networks: Mapping[Role, PreTrainedModel]
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
            beginning, role = sources.mask[:block], ROLE_OF[sources.mask[block - 1]]
            if beginning not in of_beginning:
                of_beginning[beginning] = {}
                for path in blueprints[role].paths(block):
                    module = networks[role].get_submodule(path)
                    of_beginning[beginning] |= own_statistics(module, f"{role}.{path}", reset=True)
            found[sources.mask] |= of_beginning[beginning]
    return found
