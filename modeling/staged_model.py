"""A model that goes from stage to stage, at once or in the background, and what torch does to it meanwhile.

Notation: N blocks; stage k takes blocks 1..k from the teacher. A piece is a block or a converter.
"""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .errors import RepositoryError, StageError, StateDictError
from .loading import sources_of
from .parts.adapters import read_adapter, refuse_vacancies, undone_on_error
from .parts.locking import SWAPPING, exclusive
from .parts.structure import has_accelerate_hooks
from .parts.weights import WeightStore
from .pieces import PiecedModel
from .repository.manifest import file_of, statistics_file
from .repository.source import Repository
from .routes.batchnorm import Statistics
from .routes.compiling import Compiling
from .routes.route import Route
from .sources import ROLE_OF, Piece, Sources
from .streaming.stream import OnStage, StageStream
from .streaming.transferring import SideStream, beside_requests, side_stream
from .streaming.warming import first_call, touch_pages

logger = logging.get_logger(__name__)


class StagedModel(PiecedModel):
    """A teacher and a student cut into blocks: a model with stages.

    Built from a config or from two networks, everything is resident and changes of stage only re-route.
    Filled from a repository, only the current route is resident, unless it was asked to keep all.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.
    """

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
            self._refuse_hooks()
            # Values are compared when their block is released; what was put in is known now.
            for piece in sorted(self._resident() - target.pieces):
                if (difference := self._difference(piece)) is not None:
                    raise self._loss_of(piece, difference)
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

    def _refuse_hooks(self) -> None:
        if has_accelerate_hooks(self):
            raise StageError(
                "accelerate's hooks run the model and may keep its weights elsewhere, so no block can be attached or "
                "released: call accelerate.hooks.remove_hook_from_submodules(model) first, or load the model "
                "with keep_all=True"
            )

    def _loss_of(self, piece: Piece, difference: str | None) -> StageError:
        how = "" if difference is None else f" ({difference})"
        return StageError(
            f"{piece} was changed since it was loaded{how} and would be lost on leaving sources {self.sources!r}: save "
            "the model first and load it again, or load it with keep_all=True"
        )

    def _advance(self, stage: int) -> None:
        """The stream's step to a stage whose files are there and checked."""
        target = Sources.prefix(stage, self.num_stages)
        with self._lock:
            self._switch_to(target, target.pieces, self.device, self.dtype, warm=True)

    def _move_to(self, target: Sources) -> None:
        with self._lock:
            self._refuse_while_streaming()
            if self._store is None or self._keep_all:
                self._route = self._build_route(target)
            else:
                self._switch_to(target, target.pieces, self.device, self.dtype)

    def _switch_to(
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
        self._refuse_hooks()
        resident = self._resident()
        missing, surplus = sorted(wanted - resident), sorted(resident - wanted)
        # In the background the device is asked for nothing that requests would wait behind.
        side = side_stream(device) if warm else None
        # 1. Everything that can fail: files, hashes, names, shapes, and changes that would be lost.
        paths = {file_of(piece, self.num_stages) for piece in missing}
        masks = store.manifest.masks if self._keep_all else [target]
        paths |= {path for mask in masks if store.manifest.get(path := statistics_file(mask)) is not None}
        store.prepare(sorted(paths))
        for piece in surplus:
            with beside_requests(side):
                unchanged = self._is_unchanged(piece)
            if not unchanged:
                raise self._loss_of(piece, self._difference(piece))
            self._tell_of_hooks(piece)
        # 2. New modules beside the model. What they follow is read first: afterwards it may be gone.
        self._note_trainable()
        made, statistics = self._make_new(store, missing, masks, device, dtype, side)
        # 3. The route over both, not in use yet.
        route = self._build_route(target, made, statistics)
        if warm:
            with beside_requests(side):
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

    def _make_new(
        self,
        store: WeightStore,
        missing: Sequence[Piece],
        masks: Sequence[Sources],
        device: torch.device,
        dtype: torch.dtype,
        side: SideStream | None,
    ) -> tuple[dict[Piece, Mapping[str, nn.Module]], dict[str, Statistics]]:
        """Modules of pieces, and the statistics of masks that have none yet; over a side stream if there is one."""
        built_on = device if side is None else torch.device("cpu")
        made = {piece: self._make(piece, built_on, dtype) for piece in missing}
        statistics: dict[str, Statistics] = {
            mask.mask: {n: t.to(built_on, dtype, copy=True) for n, t in found.items()}
            for mask in masks
            if mask.mask not in self._statistics.keys() | self._discarded
            and (found := store.statistics(mask)) is not None
        }
        if side is not None:
            for module in chain.from_iterable(modules.values() for modules in made.values()):
                side.move(module)
            statistics = {mask: {n: side.copy(t) for n, t in found.items()} for mask, found in statistics.items()}
        return made, statistics

    @torch.no_grad()
    def _warm(
        self, route: Route, made: Mapping[Piece, Mapping[str, nn.Module]], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Bring in the pages of new modules and pay for their first call, off the serving path."""
        for modules in made.values():
            for module in modules.values():
                touch_pages(module)
        # A pass in training mode would leave its mark on statistics and on the random state.
        seen = self._seen
        if seen is not None and not any(module.training for module in self.modules()):
            blocks = [piece.number for piece in made if piece.kind in ROLE_OF.values()]
            # What is compiled is so by module, also what stands in for a block behind with the mask's statistics.
            last = self.num_stages if self._compiling is not None or not blocks else max(blocks)
            seen_now = first_call(route, min(blocks, default=1), last, seen, device, dtype)
            # What a request has left meanwhile counts for more.
            if self._seen is seen:
                self._seen = seen_now

    # --- Adapters -----------------------------------------------------------------------------------------------

    @exclusive
    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Put a new adapter of PEFT on the model, to be trained, as transformers does.

        Args:
            adapter_config: What to add, and where.
            adapter_name: What to call it; `"default"` by default.

        Raises:
            StageError: While stages are streamed, which would release blocks with the adapter.
            ValueError: As transformers', such as for a target that is not resident: load with `keep_all=True`.
        """
        self._refuse_while_streaming()
        if self._store is None:
            logger.warning(
                "the model is in no repository, so its adapter cannot be saved: save and load the model first"
            )
        with undone_on_error(self):
            super().add_adapter(adapter_config, adapter_name)

    @exclusive
    def load_adapter(  # type: ignore[override]
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        peft_config: Any = None,
        adapter_state_dict: dict[str, torch.Tensor] | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Put a trained adapter (LoRA and others of PEFT) on the model, as transformers does.

        Args:
            peft_model_id: The adapter's folder or Hub id; its weights must be a safetensors file.
            adapter_name: What to call it; `"default"` by default.
            peft_config: The adapter's config, in place of a repository.
            adapter_state_dict: The adapter's tensors, in place of a repository.
            adapter_kwargs: `revision`, `subfolder`, `token`, `cache_dir` and the like, for the adapter's repository.
            kwargs: transformers' other arguments.

        Returns:
            transformers' loading info.

        Raises:
            StageError: If a part of it is for a block that is not resident: load the model with `keep_all=True`.
            RepositoryError: If there is no such adapter, or the model has no place for a part of it.
            ImportError: If PEFT is not installed.
        """
        self._refuse_while_streaming()
        if peft_model_id is not None and adapter_state_dict is None:
            repository = Repository.open(peft_model_id, **(adapter_kwargs or {}))
            found, adapter_state_dict = read_adapter(repository)
            peft_config = peft_config or found
        refuse_vacancies(self, adapter_state_dict or ())
        with undone_on_error(self):
            info = super().load_adapter(
                None, adapter_name, peft_config=peft_config, adapter_state_dict=adapter_state_dict, **kwargs
            )
            if info.unexpected_keys:
                raise RepositoryError(
                    f"the adapter holds {min(info.unexpected_keys)!r}, for which the model has no place: use the PEFT "
                    "release that it was saved with"
                )
        return info

    # --- What transformers and torch do to a model --------------------------------------------------------------

    def train(self, mode: bool = True) -> StagedModel:
        """Set the student and the converters to training or eval mode; the teacher stays in eval mode always.

        Its BatchNorm statistics would drift otherwise, and it would no longer be the teacher.
        """
        with self._lock:
            self.training = mode
            for name, child in self.named_children():
                child.train(mode and name != "teacher")
            self._reroute()
        return self

    def isolate_statistics(self, isolate: bool = True) -> None:
        """Whether passes of mixed paths in training mode leave the networks' BatchNorm statistics alone.

        They do unless told otherwise: the student's statistics fit its own features. The method's own code
        (arXiv 2509.22319) lets every pass update them; `isolate=False` is for comparisons with it.
        """
        with self._lock:
            self._isolates_statistics = isolate
            self._reroute()

    def requires_grad_(self, requires_grad: bool = True) -> StagedModel:
        """Let the student and the converters require gradients, or not; the teacher never does."""
        with self._lock:
            for name, child in self.named_children():
                child.requires_grad_(requires_grad and name != "teacher")
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the units of the blocks, in place: those that are resident, and those that come later.

        A change of stage compiles nothing but new blocks; in a stream it does so before the swap, off the
        serving path. Units of one class and shape share their code. `torch.compile(model)` compiles the whole
        forward pass instead, again at each stage that it has not seen.

        Args:
            args: As in `torch.compile`, after the model.
            kwargs: The same. Copies and pickles of the model are not compiled.
        """
        with self._lock:
            self._compiling = Compiling(args, kwargs)
            for piece in self._resident():
                if piece.kind == "teacher" or piece.kind == "student":
                    plan, network = self._blueprints[piece.kind], self._network(piece.kind)
                    for path in plan.units.intersection(plan.paths(piece.number)):
                        self._compiling.apply(network.get_submodule(path))
            self._reroute()

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As transformers', for both networks, also for blocks that come later."""
        with self._lock:
            _ = self.teacher  # a network that does not exist could not check the request
            super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The tensors of what is resident, all of one stage."""
        with self._lock:
            return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but a partial load must be meant: with `strict=False`, what would be a mixture is refused.

        `model.safetensors` of a PWL repository is the student alone, under the names of the file. transformers' Trainer
        loads it in this way for `resume_from_checkpoint` and `load_best_model_at_end`, and would leave the converters,
        and most of a ViT's student, as they are: train with `PWLTrainer`, which restores all of a checkpoint, or load
        the checkpoint with `from_pretrained`.

        Args:
            state_dict: Tensors by their names in `model.state_dict()`.
            strict: Whether it must have all of them. Otherwise it may have a part.
            assign: As in torch.

        Returns:
            As torch's: `missing_keys` and `unexpected_keys`.

        Raises:
            RuntimeError: As torch's.
            StateDictError: With `strict=False`, if names are not the model's, or if it is the whole student without the
                converters that were trained with it. The model stays as it was.
        """
        with self._lock:
            if not strict:
                self._check_partial(state_dict.keys())
            return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # Through a wrapper torch asks this in place of `load_state_dict`. That of torch.compile is given the model's
        # own names, for which it has no place: it would load nothing of them in silence.
        if prefix:
            given = {name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
            self._check_partial(given)
            if prefix == "_orig_mod." and not given:
                raise StateDictError(
                    "nothing of this state dict would be loaded, for torch.compile(model) has other names: resume with "
                    "PWLTrainer and torch_compile=True, or call load_state_dict of the model that was compiled"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]

    def _check_partial(self, given: AbstractSet[str]) -> None:
        own = self.state_dict().keys()
        unknown = sorted(given - own)
        student = {name for name, _ in self.named_parameters() if name.startswith("student.")}
        student_alone = bool(student) and student <= given and all(name.startswith("student.") for name in given)
        if not unknown and (not student_alone or all(name.startswith("student.") for name in own)):
            return
        found = "it is the student alone, without its converters"
        if unknown:
            found = f"{len(unknown)} of its {len(given)} names are not the model's, such as {unknown[0]}"
        raise StateDictError(
            f"this state dict would leave a mixture: {found}. transformers' Trainer cannot restore a PWL checkpoint "
            "(resume_from_checkpoint, load_best_model_at_end), whose model.safetensors is the student alone: use "
            "PWLTrainer (pwl_hf.training), or load the checkpoint's folder with "
            "PWLForImageClassification.from_pretrained(folder, keep_all=True). A part of a state dict must have names "
            "of model.state_dict(), with the same pieces resident; load the student alone by model.student"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> StagedModel:
        with self._lock:
            super()._apply(fn, recurse)
            self._statistics = {mask: {n: fn(t) for n, t in found.items()} for mask, found in self._statistics.items()}
            self._reroute()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A copy carries no stream; it may start its own.
        return super().__getstate__() | {"_stream": None, "_compiling": None}

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles are made of a snapshot: what is read from it later cannot change under the reader. Not
        # `__deepcopy__`, which a wrapper's `__getattr__` (PEFT, torch.compile) would find here and take for its own.
        with self._lock:
            tensors = [*self.parameters(), *self.buffers(), *(t for s in self._statistics.values() for t in s.values())]
            memo = {id(tensor): _alias(tensor) for tensor in tensors}
            state = copy.deepcopy(self.__getstate__(), {**memo, id(self): self})
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor over the same values, which a move or a cast of the first leaves alone."""
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), tensor.requires_grad)
    return tensor.detach() if type(tensor) is torch.Tensor else tensor
