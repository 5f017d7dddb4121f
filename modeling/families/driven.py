"""Families that are data: a network's own forward drives, over a hollow copy of its tree of modules.

A segment is a shallow copy of the network's containers (the model, its base, its list of layers) that shares the
modules of its own blocks. Elsewhere stand ports: an absent layer passes its input on, the one before the segment's
first puts in the features that came over the boundary, an absent embedder gives something of the right shape, and what
follows the layers passes its input through. So masks, positions, windows and caches are made by the network's own code,
from its own config, with each layer's own index, and nothing of a forward is written anew.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..errors import StageError
from ..transformers_internals import class_of_task
from .base import Boundary, Family, Features, GetModule, Inputs, SegmentOutput
from .ports import FLOW, Flow, Skipped, StandIn, Tap, Through

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from .base import Segment


# Inputs that are for the model, not for its networks.
_OF_THE_MODEL = ("labels", "return_dict", "sources")

# Fields of a config that must be off, since what they turn on reaches over blocks.
_REFUSED = {
    "use_weighted_layer_sum": "its head reads the output of every layer",
    "add_cross_attention": "its layers read a second sequence",
}
# Fields of a config by which whole layers are skipped at random in training.
_SKIPPING = ("layerdrop", "encoder_layerdrop")


@dataclass(frozen=True, eq=False)
class DrivenFamily(Family):
    """A family that is data: where the parts of its networks are. What little needs code is a subclass.

    Args:
        model_type: The `model_type` of its configs.
        base: Path of the base model in the task's model; empty where the task's model has the layers itself.
        layer_list: Path of the list of layers in the base.
        before: Paths in the base of what comes before the layers.
        after: Paths in the base of what comes after them.
        shared: Paths in the base of modules with tensors that every block needs; they may lie within a layer.
        loose: Names of parameters that the base itself has; they go with the first block.
        heads: What the base's siblings with tensors may be called.
        takes: What its networks take: those of several families join if it is one thing, in networks of equal settings.
        equal: Names in the config of these settings.
        gives_tuples: Whether a layer returns a tuple, the features first.
        stand_ins: What an absent module gives, by its path in the base, if not something like the features, or, of one
            that follows a layer, the second of what it is given: a kind of `ports.STAND_INS`.
        follows: Paths in the base of what runs right after a layer, by the layer's number (from 0).
        once: Names of the base's methods that change features, and so run in the first segment alone.
        counts_after_padding: Whether positions of tokens are counted from behind that of the padding token.
        not_exported: Why its networks have no graphs; empty if they have.

    Example:

        >>> family = DrivenFamily(
        ...     "bert", base="bert", layer_list="encoder.layer", before=("embeddings",), after=("pooler",)
        ... )
        >>> family.takes
        'token ids'
    """

    model_type: str
    base: str
    layer_list: str
    before: tuple[str, ...]
    after: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("classifier", "score", "lm_head")
    takes: str = "token ids"
    equal: tuple[str, ...] = ("vocab_size", "pad_token_id")
    gives_tuples: bool = False
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    follows: Mapping[int, str] = field(default_factory=dict)
    once: tuple[str, ...] = ()
    counts_after_padding: bool = False
    not_exported: str = ""

    # A pooler is there for some tasks, one head or another.
    has_optional_paths = True

    def model_class(self) -> type[PreTrainedModel]:
        """Not known without a task.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"the class of {self.model_type!r} depends on the task: ask class_for")

    def class_for(self, config: PreTrainedConfig, task: str) -> type[PreTrainedModel]:
        return class_of_task(config, task)

    def check_config(self, config: PreTrainedConfig) -> None:
        super().check_config(config)
        for name, reason in _REFUSED.items():
            if getattr(config, name, False):
                raise ValueError(f"{name} is on, and {reason}: it cannot be cut into blocks")
        if (getattr(config, "z_steps", None) or 0) > 1:
            raise ValueError(f"z_steps is {config.z_steps}, so its last layer runs again: it cannot be cut into blocks")

    def layer_skipping(self, config: PreTrainedConfig) -> dict[str, float]:
        return {name: rate for name in _SKIPPING if (rate := getattr(config, name, None) or 0.0) > 0}

    def max_tokens(self, config: PreTrainedConfig) -> int | None:
        positions = getattr(config, "max_position_embeddings", None)
        if self.takes != "token ids" or not isinstance(positions, int):
            return None
        return positions - ((config.pad_token_id or 0) + 1 if self.counts_after_padding else 0)

    def input_settings(self, config: PreTrainedConfig) -> dict[str, Any]:
        return {name: getattr(config, name, None) for name in self.equal}

    def not_padding(self, config: PreTrainedConfig, features: torch.Tensor, inputs: Inputs) -> torch.Tensor | None:
        mask = inputs.get("attention_mask")
        return mask.bool() if isinstance(mask, torch.Tensor) and mask.shape == features.shape[:2] else None

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return (config.num_hidden_layers,)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        return Boundary(config.hidden_size, "a sequence of features", channels_first=False)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return tuple(self._in_base(path) for path in self.before)

    def layer_path(self, config: PreTrainedConfig, unit: int) -> str:
        """See `Family.layer_path`; where the unit is absent, features are put in there."""
        return self._in_base(f"{self.layer_list}.{unit}")

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        following = (self._in_base(self.follows[unit]),) if unit in self.follows else ()
        return (self.layer_path(config, unit), *following)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return (*(self._in_base(path) for path in self.after), *self.heads)

    def shared_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return tuple(self._in_base(path) for path in self.shared)

    def loose_parameters(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return tuple(self._in_base(name) for name in self.loose)

    def classifier_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        # A checkpoint of another task may have no pooler either.
        return (*self.heads, *(self._in_base(path) for path in self.after if path.endswith("pooler")))

    def embedder(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Inputs], Features]:
        """Not called alone.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"the parts of {self.model_type!r} are run by its own forward: ask segment")

    def unit(self, config: PreTrainedConfig, unit: int, get: GetModule) -> Callable[[Features], Features]:
        """Not called alone; as `embedder`."""
        raise TypeError(f"the parts of {self.model_type!r} are run by its own forward: ask segment")

    def head(self, config: PreTrainedConfig, get: GetModule) -> Callable[[Features], torch.Tensor]:
        """Not called alone; as `embedder`."""
        raise TypeError(f"the parts of {self.model_type!r} are run by its own forward: ask segment")

    def segment(
        self, config: PreTrainedConfig, cuts: Sequence[int], first: int, last: int, get: Callable[[int], GetModule]
    ) -> Segment:
        """See `Family.segment`; the network itself is fetched as the module at the path `""`."""
        network = get(first)("")
        ends, is_end = [0, *cuts], last == len(cuts)
        # 1. The modules of its blocks, by path.
        modules: dict[str, nn.Module] = {}
        for block in range(first, last + 1):
            paths = [path for unit in range(ends[block - 1], ends[block]) for path in self.unit_paths(config, unit)]
            paths += self.embedder_paths(config) if block == 1 else ()
            paths += self.head_paths(config) if block == len(cuts) else ()
            modules |= {path: get(block)(path) for path in paths if _has(network, path)}
        modules |= {path: get(first)(path) for path in self.shared_paths(config) if _has(network, path)}
        # 2. Ports wherever other blocks would be, and taps where its own end.
        within = tuple(f"{path}." for unit in range(cuts[-1]) for path in self.unit_paths(config, unit))
        shell: dict[str, nn.Module] = {path: module for path, module in modules.items() if not path.startswith(within)}
        begin = ends[first - 1]
        for unit in range(cuts[-1]):
            paths = [path for path in self.unit_paths(config, unit) if _has(network, path)]
            layer = self.layer_path(config, unit)
            if layer not in modules:
                shell[layer] = self.skipped(network.get_submodule(layer), unit == begin - 1, modules)
                others = (path for path in paths if path != layer)
                shell |= {path: self.stand_in(config, path, network.get_submodule(path), "second") for path in others}
            elif unit + 1 in ends[first : last + 1]:
                shell[paths[-1]] = Tap(modules[paths[-1]])
        for path in self.embedder_paths(config) if first > 1 else ():
            if _has(network, path):
                shell[path] = self.stand_in(config, path, network.get_submodule(path), "features")
        for path in self.head_paths(config) if not is_end else ():
            if path.startswith(self._in_base("")) and _has(network, path):
                shell[path] = Through()
        # 3. What stands in the same containers and belongs to no block is noted too: a user may put another there.
        of_blocks = {*shell, *self.embedder_paths(config), *self.head_paths(config), *self.shared_paths(config)}
        for path in _beside(network, shell):
            if path not in of_blocks:
                get(first)(path)
        # 4. The network's own forward over all that, without what is the first segment's alone.
        hollow = _hollow(network, shell)
        base = hollow.get_submodule(self.base)
        if first > 1:
            base.__dict__["_parameters"] = dict.fromkeys(base._parameters)
            base.__dict__.update(dict.fromkeys(self.once, _unchanged))
        runner = hollow if is_end else base
        return DrivenSegment(first, last, runner, is_end, modules, _Origin(self, config, tuple(cuts), network))

    def skipped(self, like: nn.Module, puts_in: bool, modules: Mapping[str, nn.Module]) -> Skipped:
        """What stands for a layer of another segment.

        Args:
            like: The layer.
            puts_in: Whether it is the one before the segment's first.
            modules: The segment's own modules, by path.
        """
        return Skipped(like, puts_in=puts_in, gives_tuples=self.gives_tuples)

    def stand_in(self, config: PreTrainedConfig, path: str, like: nn.Module, kind: str) -> nn.Module:
        """What stands for a module of another segment that is no layer.

        Args:
            config: The network's config.
            path: Where the module stands.
            like: The module.
            kind: What is given in its place, if `stand_ins` says nothing else of it.
        """
        return StandIn(self.stand_ins.get(path.removeprefix(self._in_base("")), kind), like, config)

    def _in_base(self, path: str) -> str:
        return f"{self.base}.{path}" if self.base else path


def _unchanged(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Stands for a method that changes features, where these are none of the network's."""
    return hidden_states


class _Origin(NamedTuple):
    """What a segment was made of: data alone, so that a copy of the segment makes its blocks of the copied modules."""

    family: DrivenFamily
    config: PreTrainedConfig
    cuts: tuple[int, ...]
    network: nn.Module


@dataclass(frozen=True)
class DrivenSegment:
    """Blocks that their network's own forward runs; see `Segment`."""

    first: int
    last: int
    runner: nn.Module
    is_end: bool
    modules: Mapping[str, nn.Module] = field(repr=False)
    origin: _Origin = field(repr=False)

    def __call__(self, features: Features | None, inputs: Inputs) -> SegmentOutput:
        """See `Segment`; what the model was called with is wanted in every segment."""
        flow, given = Flow(features.tensor if features is not None else None), _accepted(self.runner, inputs)
        if not self.origin.family.interpolates:
            given.pop("interpolate_pos_encoding", None)
        main = str(getattr(self.runner, "main_input_name", ""))
        if main and given.keys().isdisjoint((main, "inputs_embeds")):
            raise ValueError(f"{type(self.runner).__name__} drives its own blocks, each of which takes {main!r} too")
        token = FLOW.set(flow)
        try:
            answer = self.runner(**given, return_dict=True)
        finally:
            FLOW.reset(token)
        return SegmentOutput(tuple(Features(tensor) for tensor in flow.outputs), answer.logits if self.is_end else None)

    def block(self, number: int) -> Segment:
        """See `Segment`."""
        if self.first == self.last:
            return self
        origin = self.origin
        return origin.family.segment(origin.config, origin.cuts, number, number, lambda _: self._module)

    def _module(self, path: str) -> nn.Module:
        return self.modules[path] if path in self.modules else self.origin.network.get_submodule(path)


def _hollow(root: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a network's containers, with other modules at some paths; all else is shared.

    Raises:
        StageError: If the forward of a container was replaced, so that its copy would run the original.
    """
    copies: dict[str, nn.Module] = {}

    def at(path: str) -> nn.Module:
        if path not in copies:
            original = root.get_submodule(path)
            if "forward" in vars(original):
                raise StageError(
                    f"the forward of {path or 'the network'} ({type(original).__name__}) was replaced, as accelerate's "
                    "hooks do it, so its blocks cannot run alone: put it back, or call "
                    "accelerate.hooks.remove_hook_from_submodules(model), first"
                )
            found = copies[path] = copy.copy(original)
            found.__dict__["_modules"] = dict(found._modules)
            if path:
                parent, _, leaf = path.rpartition(".")
                at(parent)._modules[leaf] = found
        return copies[path]

    for path, module in replacements.items():
        parent, _, leaf = path.rpartition(".")
        at(parent)._modules[leaf] = module
    return at("")


def _beside(root: nn.Module, paths: Iterable[str]) -> Iterator[str]:
    """The paths of modules that stand in a container of some paths, and are no container of them."""
    containers = {"", *(path[:end] for path in paths for end, character in enumerate(path) if character == ".")}
    for container in containers:
        for name, child in root.get_submodule(container)._modules.items():
            path = f"{container}.{name}" if container else name
            if child is not None and path not in containers:
                yield path


def _has(network: nn.Module, path: str) -> bool:
    module: nn.Module | None = network
    for step in path.split("."):
        module = module._modules.get(step) if module is not None else None
    return module is not None


def _accepted(runner: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The inputs that a network, or its base, takes; loss and output are the model's own."""
    names = _parameters(type(runner).forward)
    given = {name: value for name, value in inputs.items() if value is not None and name not in _OF_THE_MODEL}
    return {name: value for name, value in given.items() if names is None or name in names}


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str] | None:
    """The names that a forward takes; None if it takes any."""
    parameters = inspect.signature(forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)
