"""A model that goes from stage to stage, at once or in the background, and what torch does to it meanwhile.

Notation: N blocks; a stage is a mask of the schedule, usually blocks 1..k from the teacher. A part is a block, a
converter, or what blocks share.
"""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from .adapted_model import AdaptedModel
from .configuration_pwl import PWLConfig
from .errors import InputError, StageError, StateDictError
from .families.base import Inputs
from .loading import refuse_attentions
from .parts.locking import StateLock
from .parts.networks import OF_TEACHER
from .parts.parts import Parts
from .parts.router import Router
from .parts.tier import check_dtype
from .parts.weights import WeightStore
from .repository.manifest import BITS, FileEntry, ListedFile
from .repository.source import Repository
from .routes.batchnorm import Statistics
from .routes.block import Block
from .routes.compiling import Compiling
from .routes.route import RouteOutput
from .schedule import Schedule
from .sources import DIRECTIONS, Role, Sources
from .stages import Staged
from .streaming.stream import StageStream
from .streaming.swapping import Swapper, loss_of, refuse_hooks
from .streaming.warming import Seen


class StagedModel(Staged, AdaptedModel):
    """A teacher and a student cut into blocks: a model with stages.

    Built from a config or from two networks, everything is resident and changes of stage only re-route.
    Filled from a repository, only the current route is resident, unless it was asked to keep more.

    Args:
        config: The configuration.
        teacher: The teacher, if it exists already; of `config.teacher_config`.
        student: The student, if it exists already; of `config.student_config`.
        vacant: Build it with nothing in it, to be filled from a repository.

    Raises:
        TypeError: If a network could not be cut into shards.
        ValueError: If a given network is not what its config describes.
    """

    config_class = PWLConfig
    config: PWLConfig
    base_model_prefix = "pwl"
    # The Auto class of the task, which the networks' classes come from.
    task: ClassVar[str]
    # What the networks support is checked by the networks themselves.
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss does not depend on the number of items in a batch of several steps.
    accepts_loss_kwargs = False

    def __init__(
        self,
        config: PWLConfig,
        teacher: PreTrainedModel | None = None,
        student: PreTrainedModel | None = None,
        *,
        vacant: bool = False,
    ) -> None:
        refuse_attentions(config)
        config.take_task(self.task)
        config.keep_layers()
        config.align_labels()
        super().__init__(config)
        self.num_labels = config.num_labels
        self.parts = Parts(self, config, self.task)
        self._router = Router(self.parts)
        self._swapper = Swapper(self.parts, self._router)
        self._schedule = Schedule.prefixes(config.num_blocks)
        self._stream: StageStream | None = None
        plans = self.parts.networks.blueprints
        self.supports_gradient_checkpointing = all(
            plan.model_class.supports_gradient_checkpointing for plan in plans.values()
        )
        self.encoders = nn.ModuleDict()
        self.decoders = nn.ModuleDict()
        if vacant:
            self.student = plans["student"].build_vacant()
        else:
            self._fill({"teacher": teacher, "student": student})
        self.post_init()
        if not vacant:
            self._router.take(self._router.build(self._schedule.mask(0)))

    def _fill(self, given: Mapping[Role, PreTrainedModel | None]) -> None:
        """Take over given networks, make those that are not, and all converters."""
        plans = self.parts.networks.blueprints
        # Before anything is done to networks that are the caller's.
        for role, network in given.items():
            try:
                plans[role].specs(1)
            except NotImplementedError as error:
                raise TypeError(f"the {role} could not be saved: {error}") from error
            if network is not None and (difference := plans[role].difference(network)) is not None:
                raise ValueError(
                    f"the {role} is not what its config describes, and could not be saved as it is: {difference}; "
                    "merge an adapter first (merge_and_unload), and let the config's labels be those of the head"
                )
        if (reason := self.parts.networks.refused_embedder()) is not None:
            raise InputError(f"{reason}: give a student of the teacher's widths and settings, or leave it out")
        for role, network in given.items():
            self._modules[role] = plans[role].build() if network is None else network
        self.parts.share_embedder(warn=given["student"] is not None)
        # In order, decoders first: a seed must give the same converters in every process.
        for direction in sorted(DIRECTIONS):
            for boundary in range(1, self.num_blocks):
                converter = self.parts.networks.new_converter(direction, boundary)
                self.parts.networks.converters(direction)[str(boundary)] = converter
        # Once more: a seed goes on giving the converters that it always gave.
        for made in (*self.encoders.values(), *self.decoders.values()):
            made.reset_parameters()  # type: ignore[operator]
        self.teacher.requires_grad_(False).eval()

    def init_weights(self) -> None:
        """Does nothing: networks and converters are made with their values, and what was put in since stays."""

    def initialize_weights(self) -> None:
        """Does nothing, as `init_weights`."""

    # --- What it is made of -------------------------------------------------------------------------------------

    @property
    def teacher(self) -> PreTrainedModel:
        """The teacher, a model of its original class; `Vacant` modules stand for blocks that are not resident."""
        return self.parts.networks.of("teacher")

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return self.config.num_blocks

    def set_schedule(self, sources: Iterable[str]) -> None:
        """Let the stages be other masks, such as blocks in another order; it is saved with the model.

        The model stays on its path, which may be no stage of the new schedule.

        Args:
            sources: The mask of each stage, from the student to the teacher, each with better blocks than the last:
                the teacher's, or in low precision (`Q`) if the model has a tier.

        Raises:
            StageError: If stages are being streamed.
            ValueError: If they are no such masks, or not of N letters.
        """
        schedule = Schedule.of(Sources.of(mask, self.num_blocks) for mask in sources)
        if schedule.has_tier and self.parts.tier is None:
            raise ValueError("the schedule has blocks in low precision, and the model has none: call add_tier first")
        with self.parts.lock:
            self._refuse_while_streaming(anyone=True)
            self._schedule = schedule

    @property
    def tier(self) -> int | None:
        """The bits of a weight in the teacher's tier of low precision; None if the model has none."""
        return self.parts.tier

    def add_tier(self, bits: int = 8) -> None:
        """Let the teacher's blocks be there in low precision too, and be stages on the way; no training is needed.

        A matrix (of a linear layer, a convolution, an embedding) becomes whole numbers with one scale a row; all else
        stays as it is. The next save writes two files more for each block: `quantised/`, and `refinements/`, which
        makes the first the teacher's own bit for bit. Statistics of masks serve for both. The schedule becomes
        `Schedule.ladder()` of the one that there is, unless that has such stages already: `QSSS` comes before `TSSS`.
        A model that has a tier gets another.

        The model stays on its path, which may be no stage of the new schedule.

        Args:
            bits: 8, or 4: smaller, and no more as good as the teacher.

        Raises:
            StageError: If stages are being streamed.
            ValueError: For other bits, or if the model is of a dtype that is not split.

        Example:

            >>> model.add_tier()  # doctest: +SKIP
            >>> model.schedule  # doctest: +SKIP
            ('SS', 'QS', 'QQ', 'TQ', 'TT')
        """
        if isinstance(bits, bool) or bits not in BITS:
            raise ValueError(f"bits must be {' or '.join(map(str, BITS))}, got {bits!r}")
        check_dtype(self.dtype)
        with self.parts.lock:
            self._refuse_while_streaming(anyone=True)
            if self._sources.low_blocks and bits != self.parts.tier:
                raise StageError(f"the model is at sources {self.sources!r}: go to others before it gets another tier")
            self.parts.add_tier(bits)
            if not self._schedule.has_tier:
                self._schedule = self._schedule.ladder()

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """BatchNorm statistics by mask: full name of a running statistic -> its values."""
        return MappingProxyType(self.parts.statistics)

    def run(self, inputs: Inputs, sources: str | None = None) -> RouteOutput:
        """Run a route: the call has it from start to end, whatever becomes of the model's stage meanwhile.

        Args:
            inputs: What the networks take, by name.
            sources: The route's mask; the current one by default. All of it must be resident.

        Returns:
            `logits`, and the `outputs` of the N blocks.

        Raises:
            StageError: If the mask needs what is not resident.
            ValueError: If it is malformed.
        """
        refuse_attentions(self.config)
        route = self._router.current() if sources is None else self._router.of(sources)
        output = route(inputs)
        if not torch.compiler.is_compiling():
            # After the pass: what failed here would fail in the warm-up too.
            self._swapper.seen = Seen.of(route.sources, inputs, output.outputs)
        return output

    def block(self, number: int, sources: str | None = None) -> Block:
        """A block of a route as a module of its own, tensors in and tensors out, without the converter before it.

        Args:
            number: The block, from 1. The first takes the model's main input, the last gives logits.
            sources: The route's mask; the current one by default. All of it must be resident.

        Raises:
            StageError: If the mask needs what is not resident.
            ValueError: If there is no such block, or the mask is malformed.

        Example:

            >>> block = model.block(2)  # doctest: +SKIP
            >>> features = block(features)  # doctest: +SKIP
        """
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= self.num_blocks:
            raise ValueError(f"blocks are numbered from 1 to {self.num_blocks}, got {number!r}")
        route = self._router.current() if sources is None else self._router.of(sources)
        plan = self.parts.networks.blueprints[route.sources.roles[number - 1]]
        before = plan.family.boundary(plan.config, plan.cuts[number - 2]) if number > 1 else None
        return Block(route, number, self.main_input_name, before)

    # --- Changes of stage ---------------------------------------------------------------------------------------

    def set_sources(self, sources: str) -> None:
        """Take the path of any mask, fetching what it needs and releasing what it does not.

        Args:
            sources: One letter a block, `T` for the teacher and `S` for the student.

        Raises:
            ValueError: If the mask is malformed.
            StageError: If a block that would be released was changed since it was loaded.
            RepositoryError: If a file is not what the manifest says. The model stays as it was.
        """
        self._move_to(Sources.of(sources, self.num_blocks))

    @property
    def _sources(self) -> Sources:
        return self._router.sources

    @property
    def _lock(self) -> StateLock:
        return self.parts.lock

    def _growing_from(self) -> Repository:
        if self.parts.is_whole:
            raise StageError("everything is resident already, there is nothing to stream: call set_stage")
        if self.parts.store is None:
            raise StageError("only a model that was loaded from a repository can be streamed")
        return self.parts.store.repository

    def _check_growth(self, target: Sources) -> None:
        parts = self.parts
        refuse_hooks(parts)
        # Values are compared when their block is released; what was put in is known now.
        wanted = parts.wanted(target)
        for part in (*sorted(parts.resident() - wanted), *parts.handed_on(wanted)):
            if (difference := part.difference()) is not None:
                raise loss_of(part, self._router.sources, difference)

    def _files_of(self, target: Sources, low: Collection[int]) -> tuple[FileEntry, ...]:
        if self.parts.makes_tier:  # of the shards themselves
            target, low = target.exact, ()
        return self._store.repository.files_for(self._store.manifest, target, low=low)

    def _has_shards(self) -> bool:
        return self.parts.makes_tier or self._store.repository.has_shards(self._store.manifest)

    def _prepare(self, files: Sequence[ListedFile], fetched: Mapping[str, Path], cancelled: Event) -> None:
        # Not the store that the stream began with: saving a model over its own folder gives it another.
        self._store.prepare([entry.path for entry in files], fetched=fetched, cancelled=cancelled)

    @property
    def _store(self) -> WeightStore:
        if self.parts.store is None:
            raise StageError("the model was not loaded from a repository")
        return self.parts.store

    def _advance(self, stage: int) -> None:
        with self.parts.lock:
            self._swapper.move(self._schedule.mask(stage), self.device, self.dtype, warm=True)

    def _move_to(self, target: Sources) -> None:
        with self.parts.lock:
            self._refuse_while_streaming()
            if self.parts.is_whole and self.parts.wanted(target) == self.parts.resident():
                self._router.take(self._router.build(target))
            else:
                self._swapper.move(target, self.device, self.dtype)

    # --- What transformers and torch do to a model --------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set the student and the converters to training or eval mode; the teacher stays in eval mode always.

        Its BatchNorm statistics would drift otherwise, and it would no longer be the teacher.
        """
        with self.parts.lock:
            self.training = mode
            for name, child in self.named_children():
                child.train(mode and name not in OF_TEACHER)
            self._router.reset()
        return self

    def isolate_statistics(self, isolate: bool = True) -> None:
        """Whether passes of mixed paths in training mode leave the networks' BatchNorm statistics alone.

        They do unless told otherwise: the student's statistics fit its own features. The method's own code
        (arXiv 2509.22319) lets every pass update them; `isolate=False` is for comparisons with it.
        """
        with self.parts.lock:
            self._router.isolates_statistics = isolate
            self._router.reset()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let the student and the converters require gradients, or not; the teacher never does, nor what it shares."""
        with self.parts.lock:
            for name, child in self.named_children():
                child.requires_grad_(requires_grad and name not in OF_TEACHER)
            for parameter in chain.from_iterable(self.parts.networks.find_embedder().values()):
                parameter.requires_grad_(False)
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
        with self.parts.lock:
            self.parts.compile(Compiling(args, kwargs))
            self._router.reset()

    @torch.no_grad()
    def take_values(self, store: WeightStore, *, teacher_too: bool = False) -> None:
        """Copy another repository's weights into the resident ones, and take over its statistics of masks.

        Args:
            store: The weights, of the same networks and in the same dtype.
            teacher_too: Take over the teacher's as well.

        Raises:
            RepositoryError: If a file is not what its manifest says.
        """
        with self.parts.lock:
            self.parts.take_values(store, teacher_too=teacher_too)
            self._router.reset()

    def set_attn_implementation(self, attn_implementation: str | dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As transformers', for both networks, also for blocks that come later."""
        with self.parts.lock:
            _ = self.teacher  # a network that does not exist could not check the request
            super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The tensors of what is resident, all of one stage."""
        with self.parts.lock:
            return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but a partial load must be meant: with `strict=False`, what would be a mixture is refused.

        `model.safetensors` of a PWL repository is the student alone, under the names of the file, and without its
        embedder where it shares the teacher's. transformers' Trainer loads it in this way for `resume_from_checkpoint`
        and `load_best_model_at_end`, and would leave the converters, and most of a ViT's student, as they are: train
        with `PWLTrainer`, which restores all of a checkpoint, or load the checkpoint with `from_pretrained`.

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
        with self.parts.lock:
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
        shared = self.parts.networks.aliases  # in a file of its own, where the student shares its embedder
        student = {n for n, _ in self.named_parameters() if n.startswith("student.") and n not in shared}
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
            "of model.state_dict(), with the same parts resident; load the student alone by model.student"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        with self.parts.lock:
            low = self.parts.unchanged_low(marked=True)
            super()._apply(fn, recurse)
            self.parts.mark(low)
            statistics = self.parts.statistics.items()
            self.parts.statistics = {mask: {n: fn(t) for n, t in found.items()} for mask, found in statistics}
            self._router.reset()
        return self

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        with self.parts.lock:
            self._router.reset()  # Routes of networks whose own forward drives hold copies of containers.

    def _replicate_for_data_parallel(self) -> Self:
        replica: Self = super()._replicate_for_data_parallel()
        replica.parts = self.parts.over(replica)
        replica._router = Router(replica.parts)
        replica._router.take(self._router.current())  # Built anew on the replica's device when it is first asked.
        replica._swapper = Swapper(replica.parts, replica._router)
        return replica

    def __getstate__(self) -> dict[str, Any]:
        # A copy carries no stream; it may start its own.
        return super().__getstate__() | {"_stream": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.parts.networks.model = self

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copies and pickles are made of a snapshot: what is read from it later cannot change under the reader. Not
        # `__deepcopy__`, which a wrapper's `__getattr__` (PEFT, torch.compile) would find here and take for its own.
        with self.parts.lock:
            statistics = (t for found in self.parts.statistics.values() for t in found.values())
            memo = {id(tensor): _alias(tensor) for tensor in (*self.parameters(), *self.buffers(), *statistics)}
            state = copy.deepcopy(self.__getstate__(), {**memo, id(self): self})
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """Another tensor over the same values, which a move or a cast of the first leaves alone."""
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), tensor.requires_grad)
    return tensor.detach() if type(tensor) is torch.Tensor else tensor
