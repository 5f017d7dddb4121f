"""A model of two networks in pieces: what is resident, and how it changes from stage to stage.

Notation: N blocks; stage k takes blocks 1..k from the teacher. A piece is a block or a converter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .batchnorm import Statistics
from .blueprint import Blueprint
from .configuration_pwl import PWLConfig
from .converters import Converter
from .errors import StageError
from .loading import sources_of
from .locking import SWAPPING, StateLock
from .manifest import file_of, statistics_file
from .route import Route, build_route
from .sources import ROLE_OF, Piece, Role, Sources
from .streaming import OnStage, StageStream
from .transformers_internals import copy_checkpointing
from .warming import touch_pages
from .weights import Tensors, WeightStore


class PWLPreTrainedModel(PreTrainedModel):
    """A teacher and a student in pieces, of which one path is taken at a time.

    Built from a config or from two networks, everything is resident and changes of stage only re-route.
    Filled from a repository, only the current route is resident, unless it was asked to keep all.

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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Converter):
            module.reset_parameters()

    def __init__(
        self,
        config: PWLConfig,
        teacher: PreTrainedModel | None = None,
        student: PreTrainedModel | None = None,
        *,
        vacant: bool = False,
    ) -> None:
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
        self._keep_all = True
        self._statistics: dict[str, Statistics] = {}
        # Whether parameters of the teacher (True), or of the rest, require gradients, as last seen.
        self._trainable = {True: False, False: True}
        self._routes: dict[str, Route] = {}
        self._lock = StateLock()
        self._stream: StageStream | None = None
        # Shape and `interpolate_pos_encoding` of the images answered last: what a new block is warmed on.
        self._seen: tuple[tuple[int, ...], bool | None] | None = None
        self.encoders = nn.ModuleDict()
        self.decoders = nn.ModuleDict()
        if vacant:
            self.student = self._blueprints["student"].build_vacant()
        else:
            self._modules["teacher"] = self._blueprints["teacher"].build() if teacher is None else teacher
            self.student = self._blueprints["student"].build() if student is None else student
            # In order: a seed must give the same converters in every process.
            for piece in sorted(self._all_pieces()):
                if piece.kind in ("encoder", "decoder"):
                    self._converters_of(piece)[str(piece.number)] = self._make_converter(piece)
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
            raise StageError("the model is vacant: build it without vacant=True, or with from_pretrained")
        return self._route.sources

    # --- Changes of stage ---------------------------------------------------------------------------------------

    def load_next_stage(self) -> int:
        """Take the next block from the teacher.

        Returns:
            The new stage.

        Raises:
            StageError: If the model is the teacher already, or its mask is no prefix; or if a block that
                would be released was changed.
            RepositoryError: If a file is not what the manifest says. The model stays at its stage.
        """
        if self.stage is None:
            raise StageError(f"sources {self.sources!r} is no stage, so it has no next one: call set_stage")
        if self.stage == self.num_stages:
            raise StageError(f"the model is at its last stage, {self.stage}: it is the teacher")
        self.set_stage(self.stage + 1)
        return self.stage

    def set_stage(self, stage: int | str) -> None:
        """Go to a stage, up or down; stepping down brings the student's blocks back from the local file.

        Args:
            stage: 0 (the student) to N, or `"teacher"`.

        Raises:
            ValueError: If there is no such stage.
            StageError: If a block that would be released was changed since it was loaded.
            RepositoryError: If a file is not what the manifest says. The model stays at its stage.
        """
        self._move_to(sources_of(stage, self.num_stages))

    def set_sources(self, sources: str) -> None:
        """Take the path of any mask, fetching what it needs and releasing what it does not.

        Args:
            sources: One letter a block, `T` for the teacher and `S` for the student.

        Raises:
            ValueError: If the mask is malformed.
            StageError: If a block that would be released was changed since it was loaded.
            RepositoryError: If a file is not what the manifest says. The model stays as it was.
        """
        self._move_to(Sources.of(sources, self.num_stages))

    def stream_stages(
        self,
        until_stage: int | str = "teacher",
        *,
        on_stage: OnStage | None = None,
        max_bytes_per_second: float | None = None,
        lookahead_bytes: int = 256_000_000,
    ) -> StageStream:
        """Load the remaining stages in the background while the model answers.

        Each stage is fetched, checked, built beside the model and warmed on images of the size seen last,
        before one assignment makes it the current one. A fault that outlasts the retries ends the stream;
        the model stays at its stage and keeps answering, and a new stream goes on from there.

        While it runs, `set_stage`, `set_sources` and `load_next_stage` are refused; forward passes, `to`,
        `train`, `eval`, `save_pretrained` and copies are safe in any thread.

        Args:
            until_stage: The last stage to load, or `"teacher"`.
            on_stage: Called with the model and the stage after each swap, in the background thread.
            max_bytes_per_second: A limit on downloading.
            lookahead_bytes: How much may be fetched ahead of the stage that is being attached.

        Returns:
            A handle: `wait`, `cancel`, `done`, `exception`, `stage`, `bytes_done`; a context manager.

        Raises:
            ValueError: If there is no such stage, or the model is past it.
            StageError: If a stream is running, or the model is not loaded stage by stage.

        Example:

            >>> with model.stream_stages() as stream:  # doctest: +SKIP
            ...     answer = model(pixel_values)
        """
        target = sources_of(until_stage, self.num_stages)
        with self._lock:
            self._refuse_while_streaming(anyone=True)
            if self._store is None or self._keep_all:
                raise StageError("everything is resident already, there is nothing to stream: call set_stage")
            stream = StageStream(
                self,
                len(target.blocks("teacher")),
                on_stage=on_stage,
                max_bytes_per_second=max_bytes_per_second,
                lookahead_bytes=lookahead_bytes,
            )
            self._stream = stream
        return stream.start()

    @property
    def stream(self) -> StageStream | None:
        """The last stream, running or ended; None if there was none, or it is that of a parent process."""
        return self._stream if self._stream is not None and self._stream.is_of_this_process else None

    def _refuse_while_streaming(self, *, anyone: bool = False) -> None:
        stream = self.stream
        if stream is not None and not stream.done and (anyone or not stream.is_own_thread):
            raise StageError(
                f"stages are being streamed, up to stage {stream.until_stage}: cancel the stream and wait for it first"
            )

    def _advance(self, stage: int) -> None:
        """The stream's step to a stage whose files are there and checked."""
        target = Sources.prefix(stage, self.num_stages)
        with self._lock:
            self._bring(target, target.pieces, self.device, self.dtype, warm=True)

    def _move_to(self, target: Sources) -> None:
        with self._lock:
            self._refuse_while_streaming()
            if self._store is None or self._keep_all:
                self._route = self._build_route(target)
            else:
                self._bring(target, target.pieces, self.device, self.dtype)

    def _bring(
        self,
        target: Sources,
        wanted: frozenset[Piece],
        device: torch.device,
        dtype: torch.dtype,
        *,
        warm: bool = False,
    ) -> None:
        """Make `wanted` the resident pieces and take the path of `target`: all of it, or nothing."""
        store = self._store
        if store is None:
            raise StageError("the model was not loaded from a repository")
        resident = self._resident()
        missing, surplus = sorted(wanted - resident), sorted(resident - wanted)
        # 1. Everything that can fail: files, hashes, names, shapes, and changes that would be lost.
        paths = {file_of(piece, self.num_stages) for piece in missing}
        masks = store.manifest.masks if self._keep_all else [target]
        paths |= {path for mask in masks if store.manifest.get(path := statistics_file(mask)) is not None}
        store.prepare(sorted(paths))
        for piece in surplus:
            if not self._is_unchanged(piece):
                raise StageError(
                    f"{piece} was changed since it was loaded and would be lost on leaving sources "
                    f"{self.sources!r}: save the model first and load it again, or load it with keep_all=True"
                )
        # 2. New modules beside the model. What they follow is read first: afterwards it may be gone.
        for of_teacher in (True, False):
            self._requires_grad(of_teacher)
        made = {piece: self._make(piece, device, dtype) for piece in missing}
        statistics = {
            mask.mask: {n: t.to(device, dtype, copy=True) for n, t in found.items()}
            for mask in masks
            if mask.mask not in self._statistics and (found := store.statistics(mask)) is not None
        }
        # 3. The route over both, which nobody takes yet.
        route = self._build_route(target, made, statistics)
        if warm:
            self._warm(route, made, device, dtype)
        # 4. The swap: forward passes under way keep their route and its modules.
        with SWAPPING:
            for piece, modules in made.items():
                self._attach(piece, modules)
            self._statistics = {**self._statistics, **statistics}
            self._routes = {}
            self._route = route
            for piece in surplus:
                self._release(piece)

    @torch.no_grad()
    def _warm(
        self, route: Route, made: Mapping[Piece, Mapping[str, nn.Module]], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Bring in the pages of new modules and pay for a route's first call, off the serving path."""
        for modules in made.values():
            for module in modules.values():
                touch_pages(module)
        # A pass in training mode would leave its mark on statistics and on the random state.
        if self._seen is not None and not any(module.training for module in self.modules()):
            shape, interpolate = self._seen
            route(torch.zeros(shape, device=device, dtype=dtype), interpolate)

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
        if piece.kind == "teacher" or piece.kind == "student":
            modules = self._blueprints[piece.kind].make(self._network(piece.kind), piece.number, tensors, device)
        else:
            with torch.device("meta"):
                converter = self._make_converter(piece)
            converter.load_state_dict(tensors, assign=True)
            modules = {str(piece.number): converter}
        trainable = self._requires_grad(of_teacher=piece.kind == "teacher")
        for module in modules.values():
            module.requires_grad_(trainable).train(self.training and piece.kind != "teacher")
            copy_checkpointing(self, module)
        return modules

    def _requires_grad(self, of_teacher: bool) -> bool:
        """Whether new parameters of the teacher, or of the rest, are to require gradients: as the resident ones do."""
        found = [p.requires_grad for n, p in self.named_parameters() if n.startswith("teacher.") == of_teacher]
        if found:
            self._trainable[of_teacher] = any(found)
        return self._trainable[of_teacher]

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

    def _tensors(self, piece: Piece) -> Tensors:
        """The resident tensors of a piece, named as `WeightStore.piece` names them."""
        if piece.kind == "teacher" or piece.kind == "student":
            network = self._network(piece.kind)
            return {name: _tensor(network, name) for name in self._blueprints[piece.kind].specs(piece.number)}
        converter = self._converter(piece)
        return {"weight": converter.weight.detach(), "bias": converter.bias.detach()}

    def _is_unchanged(self, piece: Piece) -> bool:
        """Whether a resident piece is, bit for bit, what the repository holds."""
        if self._store is None:
            return False
        stored, resident = self._store.piece(piece), self._tensors(piece)
        return stored.keys() == resident.keys() and all(
            _same_bits(tensor, stored[name]) for name, tensor in resident.items()
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
        resident = self._resident() | made.keys()
        for piece in sorted(sources.pieces):
            if piece not in resident:
                raise StageError(
                    f"sources {sources.mask!r} needs {piece}, which is not resident: call "
                    f"set_sources({sources.mask!r}), or load the model with keep_all=True"
                )
        found = {**self._statistics, **statistics}.get(sources.mask)
        return self._route_over(sources, found, made)

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
        return build_route(
            sources,
            self._blueprints,
            networks,
            converters,
            statistics,
            made=ahead,
            training=self.training,
            estimate=estimate,
        )

    @torch.compiler.disable
    def _route_for(self, sources: str) -> Route:
        # One dict from start to end: a route that is built while the model changes must not be kept after it.
        routes = self._routes
        if sources not in routes:
            with SWAPPING:  # Over one stage's pieces, not over a part of two.
                routes[sources] = self._build_route(Sources.of(sources, self.num_stages))
        return routes[sources]

    def _reroute(self) -> None:
        """Build the current route anew: modules, statistics or modes have changed."""
        self._routes = {}
        if self._route is not None:
            self._route = self._build_route(self._route.sources)

    # --- What transformers and torch do to a model --------------------------------------------------------------

    def train(self, mode: bool = True) -> PWLPreTrainedModel:
        """Set the student and the converters to training or eval mode; the teacher stays in eval mode always.

        Its BatchNorm statistics would drift otherwise, and it would no longer be the teacher.
        """
        with self._lock:
            self.training = mode
            for name, child in self.named_children():
                child.train(mode and name != "teacher")
            self._reroute()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> PWLPreTrainedModel:
        """Let the student and the converters require gradients, or not; the teacher never does."""
        with self._lock:
            for name, child in self.named_children():
                child.requires_grad_(requires_grad and name != "teacher")
        return self

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As transformers', for both networks, also for blocks that come later."""
        with self._lock:
            _ = self.teacher  # a network that does not exist could not check the request
            super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The tensors of what is resident, all of one stage."""
        with self._lock:
            return super().state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PWLPreTrainedModel:
        with self._lock:
            super()._apply(fn, recurse)
            self._statistics = {mask: {n: fn(t) for n, t in found.items()} for mask, found in self._statistics.items()}
            self._reroute()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A copy carries no stream; it may start its own.
        return super().__getstate__() | {"_stream": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> PWLPreTrainedModel:
        with self._lock:
            other = type(self).__new__(type(self))
            memo[id(self)] = other
            other.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return other

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The state is read after this returns: a copy of its structure, over the same tensors, cannot change
        # under the reader.
        with self._lock:
            tensors = [*self.parameters(), *self.buffers(), *(t for s in self._statistics.values() for t in s.values())]
            other = copy.deepcopy(self, {id(tensor): tensor for tensor in tensors})
        return _restore, (type(self), other.__dict__)


def _restore(model_class: type[PWLPreTrainedModel], state: dict[str, Any]) -> PWLPreTrainedModel:
    model = model_class.__new__(model_class)
    model.__dict__.update(state)
    return model


# Whoever goes through a model's modules in another thread goes on through the old dict.


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


def _same_bits(resident: torch.Tensor, stored: torch.Tensor) -> bool:
    if resident.shape != stored.shape:
        return False
    if resident.is_meta:
        return True  # It has no values that could be lost.
    stored = stored.to(resident.device, resident.dtype)
    flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (resident, stored)]
    return torch.equal(*flat)
