"""Which route a call takes: the current one, and those of other masks, built anew when what they run over changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import nn

from ..errors import StageError
from ..routes.batchnorm import Statistics
from ..routes.route import Route, build_route
from ..sources import PartId, Sources
from .locking import SWAPPING
from .part import Made, Part
from .parts import Parts


class Router:
    """The routes over a model's parts.

    A forward pass asks once and holds on to what it gets; it takes no lock unless modules were replaced.

    Args:
        parts: The parts.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        # Whether mixed passes in training mode leave the networks' running statistics alone.
        self.isolates_statistics = True
        self._current: Route | None = None
        self._others: dict[str, Route] = {}

    @property
    def sources(self) -> Sources:
        """The mask of the current route.

        Raises:
            StageError: If there is none: nothing is resident.
        """
        if self._current is None:
            raise StageError("the model is vacant: build it without vacant=True, or with from_pretrained")
        return self._current.sources

    def take(self, route: Route) -> None:
        """Make a route the current one."""
        self._others = {}
        self._current = route

    def reset(self) -> None:
        """Build all routes anew: modules, statistics or modes have changed."""
        self._others = {}
        if self._current is not None:
            self._current = self.build(self._current.sources)

    def current(self) -> Route:
        """The current route, over the modules that are in their places now."""
        route, networks = self._current, self.parts.networks.model._modules
        if route is None:
            _ = self.sources  # says why
        elif torch.compiler.is_compiling() or route.is_current(networks):
            return route
        with SWAPPING:  # A swap may have come in between, and has its own route.
            if not self._current.is_current(networks):  # type: ignore[union-attr]
                self.reset()
            return self._current  # type: ignore[return-value]

    @torch.compiler.disable
    def of(self, sources: str) -> Route:
        """The route of a mask.

        Raises:
            StageError: If it needs a part that is not resident.
            ValueError: If the mask is malformed.
        """
        # One dict from start to end: a route that is built while the model changes must not be kept after it.
        routes = self._others
        if sources not in routes or not routes[sources].is_current(self.parts.networks.model._modules):
            with SWAPPING:  # Over one stage's parts, not over some of two.
                routes[sources] = self.build(Sources.of(sources, self.parts.num_blocks))
        return routes[sources]

    def build(
        self,
        sources: Sources,
        made: Mapping[Part, Made] = MappingProxyType({}),
        statistics: Mapping[str, Statistics] = MappingProxyType({}),
        *,
        estimate: bool = False,
    ) -> Route:
        """The route of a mask over what is resident, and over parts and statistics that are about to be.

        Args:
            sources: The mask.
            made: Parts that were made and are not attached yet.
            statistics: BatchNorm statistics by mask that the model does not have yet.
            estimate: Build the path that estimates the mask's statistics.

        Raises:
            StageError: If it needs a part that is not resident.
        """
        parts = self.parts
        parts.check_resident(sources, made)
        ahead: dict[str, nn.Module] = {name: m for modules in made.values() for name, m in modules.items() if name}
        converters: dict[PartId, nn.Module] = {}
        places = []
        for boundary, direction in sources.changes:
            name, holder = f"{direction}s.{boundary}", parts.networks.converters(direction)
            converter = ahead[name] if name in ahead else holder[str(boundary)]
            converters[PartId(direction, boundary)] = converter
            places.append((holder, str(boundary), converter))
        route = build_route(
            sources,
            parts.networks.blueprints,
            {role: parts.networks.of(role) for role in set(sources.roles)},
            converters,
            {**parts.statistics, **statistics}.get(sources.exact.mask),
            low_precision=parts.networks.low_precision if sources.low_blocks else None,
            made=ahead,
            compiling=parts.compiling,
            training=parts.networks.model.training and self.isolates_statistics,
            estimate=estimate,
        )
        return replace(route, places=(*places, *route.places))
