"""The pieces of a model: which are resident, how one is made, attached and released, and the routes over them.

Notation: N blocks; a piece is a block of the teacher or the student, or a converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from types import MappingProxyType

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration_pwl import PWLConfig
from .errors import StageError
from .loading import refuse_attentions
from .parts.blueprint import Blueprint
from .parts.locking import SWAPPING, StateLock
from .parts.structure import Structure, hooked_by_others, special_tensor
from .parts.weights import Tensors, WeightStore, same_bits
from .routes.batchnorm import Statistics
from .routes.compiling import Compiling
from .routes.converters import Converter
from .routes.route import Route, build_route
from .sources import ROLE_OF, Piece, Role, Sources
from .streaming.stream import StageStream
from .streaming.warming import Seen
from .transformers_internals import copy_checkpointing

logger = logging.get_logger(__name__)

_VACANT = "the model is vacant: build it without vacant=True, or with from_pretrained"


class PiecedModel(PreTrainedModel):
    """A teacher and a student in pieces, of which one path is taken at a time.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.
    """

    config_class = PWLConfig
    config: PWLConfig
    base_model_prefix = "pwl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    # What the networks support is checked by the networks themselves.
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss does not depend on the number of items in a batch of several steps.
    accepts_loss_kwargs = False

    def init_weights(self) -> None:
        """Does nothing: networks and converters are made with their values, and what was put in since stays."""

    def initialize_weights(self) -> None:
        """Does nothing, as `init_weights`."""

    def __init__(
        self,
        config: PWLConfig,
        teacher: PreTrainedModel | None = None,
        student: PreTrainedModel | None = None,
        *,
        vacant: bool = False,
    ) -> None:
        refuse_attentions(config)
        config.align_labels()
        super().__init__(config)
        self.num_labels = config.num_labels
        self._blueprints: dict[Role, Blueprint] = {
            "teacher": Blueprint("teacher", config.teacher_config, config.teacher_cuts),
            "student": Blueprint("student", config.student_config, config.student_cuts),
        }
        plans = self._blueprints.values()
        self.supports_gradient_checkpointing = all(
            plan.family.model_class().supports_gradient_checkpointing for plan in plans
        )
        self._store: WeightStore | None = None
        # The folders of networks that were joined: they are not saved into.
        self._joined_from: tuple[str, ...] = ()
        self._keep_all = True
        self._statistics: dict[str, Statistics] = {}
        # Masks whose statistics in the repository are neither loaded nor saved again.
        self._discarded: frozenset[str] = frozenset()
        # Whether parameters of the teacher (True), or of the rest, require gradients, as last seen.
        self._trainable = {True: False, False: True}
        self._routes: dict[str, Route] = {}
        self._lock = StateLock()
        self._stream: StageStream | None = None
        # How units are compiled, those that come later as well.
        self._compiling: Compiling | None = None
        # The shapes of the last answer: what a new block is warmed on.
        self._seen: Seen | None = None
        # Whether mixed passes in training mode leave the networks' running statistics alone.
        self._isolates_statistics = True
        self.encoders = nn.ModuleDict()
        self.decoders = nn.ModuleDict()
        if vacant:
            self.student = self._blueprints["student"].build_vacant()
        else:
            # Before anything is done to networks that are the caller's.
            for given, (role, plan) in zip((teacher, student), self._blueprints.items(), strict=True):
                difference = None if given is None else plan.difference(given)
                if difference is not None:
                    raise ValueError(
                        f"the {role} is not what its config describes, and could not be saved as it is: {difference}; "
                        "merge an adapter first (merge_and_unload), and let the config's labels be those of the head"
                    )
            self._modules["teacher"] = self._blueprints["teacher"].build() if teacher is None else teacher
            self.student = self._blueprints["student"].build() if student is None else student
            # In order: a seed must give the same converters in every process.
            for piece in sorted(self._all_pieces()):
                if piece.kind in ("encoder", "decoder"):
                    self._converters_of(piece)[str(piece.number)] = self._make_converter(piece)
            # Once more: a seed goes on giving the converters that it always gave.
            for converter in (*self.encoders.values(), *self.decoders.values()):
                converter.reset_parameters()  # type: ignore[operator]
            self.teacher.requires_grad_(False).eval()
        self.post_init()
        self._route: Route | None = None if vacant else self._build_route(Sources.prefix(0, config.num_stages))

    # --- What it is made of -------------------------------------------------------------------------------------

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, a model of its original class; `Vacant` modules stand for blocks that are not resident."""
        if "teacher" not in self._modules:
            with self._lock:
                if "teacher" not in self._modules:
                    # Not before it is needed: a first answer takes no part of it.
                    _add(self, {"teacher": self._blueprints["teacher"].build_vacant().eval()})
        return self._modules["teacher"]  # type: ignore[return-value]

    @property
    def num_stages(self) -> int:
        """The number of blocks N; stages go from 0 to N."""
        return self.config.num_stages

    @property
    def sources(self) -> str:
        """Where each block of the current route comes from, such as `"TTSS"`."""
        return self._current.mask

    @property
    def stage(self) -> int | None:
        """The current stage; None if the mask is no prefix of teacher blocks."""
        return self._current.stage

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """BatchNorm statistics by mask: full name of a running statistic -> its values."""
        return MappingProxyType(self._statistics)

    @property
    def _current(self) -> Sources:
        if self._route is None:
            raise StageError(_VACANT)
        return self._route.sources

    # --- Pieces -------------------------------------------------------------------------------------------------

    def _all_pieces(self) -> frozenset[Piece]:
        blocks, boundaries = range(1, self.num_stages + 1), range(1, self.num_stages)
        return frozenset(
            [Piece("teacher", i) for i in blocks]
            + [Piece("student", i) for i in blocks]
            + [Piece("encoder", i) for i in boundaries]
            + [Piece("decoder", i) for i in boundaries]
        )

    def _resident(self) -> frozenset[Piece]:
        return frozenset(piece for piece in self._all_pieces() if self._is_resident(piece))

    def _is_resident(self, piece: Piece) -> bool:
        if piece.kind == "teacher" or piece.kind == "student":
            # Not through the properties: asking must not build a network.
            if piece.kind not in self._modules:
                return False
            return self._blueprints[piece.kind].is_resident(self._network(piece.kind), piece.number)
        return str(piece.number) in self._converters_of(piece)

    def _converters_of(self, piece: Piece) -> nn.ModuleDict:
        return self.encoders if piece.kind == "encoder" else self.decoders

    def _converter(self, piece: Piece) -> Converter:
        return self._converters_of(piece)[str(piece.number)]  # type: ignore[return-value]

    def _network(self, role: Role) -> PreTrainedModel:
        return self.teacher if role == "teacher" else self.student

    def _make_converter(self, piece: Piece) -> Converter:
        ends = [
            plan.family.boundary(plan.config, plan.cuts[piece.number - 1])
            for plan in (self._blueprints["teacher"], self._blueprints["student"])
        ]
        before, after = ends if piece.kind == "encoder" else reversed(ends)
        return Converter(before.width, after.width, before.channels_first)

    def _make(self, piece: Piece, device: torch.device, dtype: torch.dtype) -> Mapping[str, nn.Module]:
        """A piece's modules from the repository, in the state that the rest of the model is in."""
        if self._store is None:
            raise StageError("the model was not loaded from a repository")
        tensors = _cast(self._store.piece(piece), device, dtype)
        of_teacher = piece.kind == "teacher"
        modules: Mapping[str, nn.Module]
        if piece.kind == "teacher" or piece.kind == "student":
            modules = self._blueprints[piece.kind].make(self._network(piece.kind), piece.number, tensors, device)
        else:
            with torch.device("meta"):
                converter = self._make_converter(piece)
            converter.load_state_dict(tensors, assign=True)
            modules = {str(piece.number): converter.eval()}
        copy_checkpointing(self, modules.values())
        for path, module in modules.items():
            if not self._trainable[of_teacher]:
                module.requires_grad_(False)
            if self.training and not of_teacher:
                module.train()
            if self._compiling is not None and self._is_unit(piece, path):
                self._compiling.apply(module)
        return modules

    def _is_unit(self, piece: Piece, path: str) -> bool:
        return (piece.kind == "teacher" or piece.kind == "student") and path in self._blueprints[piece.kind].units

    def _note_trainable(self) -> None:
        """Note if new parameters, of the teacher and of the rest, are to require gradients: as resident ones do."""
        for of_teacher in (True, False):
            networks = [child for name, child in self.named_children() if (name == "teacher") == of_teacher]
            parts = chain.from_iterable(network.modules() for network in networks)
            found = (p.requires_grad for part in parts for p in part._parameters.values() if p is not None)
            first = next(found, None)
            if first is not None:
                self._trainable[of_teacher] = first or any(found)

    def _attach(self, piece: Piece, modules: Mapping[str, nn.Module]) -> None:
        if piece.kind == "teacher" or piece.kind == "student":
            self._blueprints[piece.kind].attach(self._network(piece.kind), modules)
        else:
            _add(self._converters_of(piece), modules)

    def _release(self, piece: Piece) -> None:
        if piece.kind == "teacher" or piece.kind == "student":
            self._blueprints[piece.kind].release(self._network(piece.kind), piece.number)
        else:
            _remove(self._converters_of(piece), str(piece.number))

    def _tell_of_hooks(self, piece: Piece) -> None:
        """Warn of what a user has put on the modules of a piece that is about to be released, and that runs no more."""
        modules: list[nn.Module] = []
        if piece.kind == "teacher" or piece.kind == "student":
            network, paths = self._network(piece.kind), self._blueprints[piece.kind].paths(piece.number)
            modules += [network.get_submodule(path) for path in paths]
        else:
            modules.append(self._converter(piece))
        if (hooked := hooked_by_others(modules)) is not None:
            logger.warning(
                "%s is released, and with it a hook, or a forward, that was put on its %s: put it on the model itself, "
                "or load the model with keep_all=True",
                *(piece, hooked),
            )

    def _tensors(self, piece: Piece) -> Tensors:
        """The resident tensors of a piece, named as `WeightStore.piece` names them."""
        if piece.kind == "teacher" or piece.kind == "student":
            network = self._network(piece.kind)
            return {name: _tensor(network, name) for name in self._blueprints[piece.kind].specs(piece.number)}
        converter = self._converter(piece)
        return {"weight": converter.weight.detach(), "bias": converter.bias.detach()}

    def _difference(self, piece: Piece) -> str | None:
        """How a resident piece differs from what the config describes, its values aside; None if it does not."""
        if piece.kind == "teacher" or piece.kind == "student":
            return self._blueprints[piece.kind].difference(self._network(piece.kind), piece.number)
        with torch.device("meta"):
            expected = Structure.of(self._make_converter(piece))
        converter = self._converter(piece)
        return expected.difference(Structure.of(converter)) or special_tensor(converter)

    def _is_unchanged(self, piece: Piece) -> bool:
        """Whether a resident piece is, bit for bit, what the repository holds."""
        if self._store is None or self._difference(piece) is not None:
            return False
        stored, resident = self._store.piece(piece), self._tensors(piece)
        return stored.keys() == resident.keys() and all(
            _is_as_stored(tensor, stored[name]) for name, tensor in resident.items()
        )

    # --- Routes -------------------------------------------------------------------------------------------------

    def _build_route(
        self,
        sources: Sources,
        made: Mapping[Piece, Mapping[str, nn.Module]] = MappingProxyType({}),
        statistics: Mapping[str, Statistics] = MappingProxyType({}),
    ) -> Route:
        """The route of a mask over what is resident, and over pieces and statistics that are about to be.

        Raises:
            StageError: If it needs a piece that is not resident.
        """
        self._check_resident(sources, made)
        found = {**self._statistics, **statistics}.get(sources.mask)
        return self._route_over(sources, found, made)

    def _check_resident(
        self, sources: Sources, made: Mapping[Piece, Mapping[str, nn.Module]] = MappingProxyType({})
    ) -> None:
        """Raise a StageError if a mask needs a piece that is neither resident nor about to be."""
        resident = self._resident() | made.keys()
        for piece in sorted(sources.pieces):
            if piece not in resident:
                raise StageError(
                    f"sources {sources.mask!r} needs {piece}, which is not resident: call "
                    f"set_sources({sources.mask!r}), or load the model with keep_all=True"
                )

    def _route_over(
        self,
        sources: Sources,
        statistics: Statistics | None,
        made: Mapping[Piece, Mapping[str, nn.Module]] = MappingProxyType({}),
        *,
        estimate: bool = False,
    ) -> Route:
        networks = {ROLE_OF[letter]: self._network(ROLE_OF[letter]) for letter in set(sources.mask)}
        pieces = [Piece(direction, i) for i, direction in sources.changes]
        converters = {p: made[p][str(p.number)] if p in made else self._converter(p) for p in pieces}
        ahead = {f"{piece.kind}.{path}": m for piece, modules in made.items() for path, m in modules.items()}
        route = build_route(
            sources,
            self._blueprints,
            networks,
            converters,
            statistics,
            made=ahead,
            compiling=self._compiling,
            training=self.training and self._isolates_statistics,
            estimate=estimate,
        )
        own = [(self._converters_of(piece), str(piece.number), module) for piece, module in converters.items()]
        return replace(route, places=(*own, *route.places))

    def _current_route(self) -> Route:
        """The route of the model's stage, over the modules that are in their places now."""
        route = self._route
        if route is None:
            raise StageError(_VACANT)
        if torch.compiler.is_compiling() or route.is_current(self._modules):
            return route
        with SWAPPING:  # A swap may have come in between, and has its own route.
            if not self._route.is_current(self._modules):  # type: ignore[union-attr]
                self._reroute()
            return self._route  # type: ignore[return-value]

    @torch.compiler.disable
    def _route_for(self, sources: str) -> Route:
        # One dict from start to end: a route that is built while the model changes must not be kept after it.
        routes = self._routes
        if sources not in routes or not routes[sources].is_current(self._modules):
            with SWAPPING:  # Over one stage's pieces, not over a part of two.
                routes[sources] = self._build_route(Sources.of(sources, self.num_stages))
        return routes[sources]

    def _reroute(self) -> None:
        """Rebuild the current route: modules, statistics or modes have changed."""
        self._routes = {}
        if self._route is not None:
            self._route = self._build_route(self._route.sources)


# A new dict: another thread may be iterating over the old one.
def _add(parent: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    parent._modules = {**parent._modules, **modules}


def _remove(parent: nn.Module, name: str) -> None:
    parent._modules = {key: module for key, module in parent._modules.items() if key != name}


def _cast(tensors: Tensors, device: torch.device, dtype: torch.dtype) -> Tensors:
    return {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in tensors.items()}


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: torch.Tensor = getattr(module.get_submodule(path), leaf)
    return tensor.detach()


def _is_as_stored(resident: torch.Tensor, stored: torch.Tensor) -> bool:
    if resident.is_meta:
        return resident.shape == stored.shape  # It has no values that could be lost: hooks are refused before.
    return same_bits(resident, stored.to(resident.device, resident.dtype))
