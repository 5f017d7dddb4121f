"""The pieces of a route that graphs are made of: embedder, layers, head and converters, each traced by itself.

Layers that are built alike give the same graph over other weights, so each kind of piece is traced once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from ..families.base import Features, HandCutSegment, Inputs, Segment, SegmentOutput
from ..routes.route import Route

# What tells layers apart that compute the same: their place, the rate of a drop path, which eval mode knows nothing
# of, and what torch keeps of any module and is no hook.
_PLACES = {"layer_idx", "layer_index", "drop_prob", "training"}
_KEPT = vars(nn.Module()).keys() - {"_forward_hooks", "_forward_pre_hooks"}


@dataclass(frozen=True)
class Piece:
    """A part of a route that is traced as one.

    Args:
        call: Gives features or logits of features (None where the route begins) and the model's inputs.
        kind: What distinguishes it from pieces with the same modules.
        modules: What it runs over.
        takes: The model's inputs that it needs.
    """

    call: Callable[[Features | None, Inputs], Features | torch.Tensor]
    kind: tuple[object, ...]
    modules: tuple[nn.Module, ...] = field(repr=False)
    takes: tuple[str, ...] = ()

    def signature(self) -> tuple[object, ...]:
        """Equal for pieces that are built alike: they compute the same with the same weights."""
        return (self.kind, self.takes, *(_built_like(module) for module in self.modules))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its parameters and buffers by their names in `Traced`."""
        held = Traced(self, None, ())
        found: dict[str, torch.Tensor] = dict(held.named_parameters(remove_duplicate=False))
        return found | dict(held.named_buffers(remove_duplicate=False))


class Traced(nn.Module):
    """A piece as a module with tensors in and a tensor out.

    Args:
        piece: The piece.
        grid: The token grid of the features that come in, where they carry one.
        names: The names of the model's inputs that follow the features, or stand alone where there are none.
        takes_features: Whether features come in.
    """

    def __init__(
        self, piece: Piece, grid: tuple[int, int] | None, names: tuple[str, ...], *, takes_features: bool = True
    ) -> None:
        super().__init__()
        self.held = nn.ModuleList(piece.modules)
        self._call, self._grid, self._names, self._takes_features = piece.call, grid, names, takes_features
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Run the piece."""
        features, rest = (Features(tensors[0], self._grid), tensors[1:]) if self._takes_features else (None, tensors)
        found = self._call(features, dict(zip(self._names, rest, strict=True)))
        return found.tensor if isinstance(found, Features) else found


def pieces_of_block(route: Route, block: int, takes: tuple[str, ...], settings: Mapping[str, Any]) -> Iterator[Piece]:
    """The pieces of a block (from 1), without the converter before it.

    Args:
        route: The route.
        block: The block.
        takes: The names of the model's inputs.
        settings: What the networks are called with besides.
    """
    segment = route.segment_of(block)
    if not isinstance(segment, HandCutSegment):
        # A network's own forward drives it, from the model's inputs.
        yield Piece(partial(_run, segment, settings), ("block", block), tuple(segment.modules.values()), takes)
        return
    if segment.embedder is not None:
        yield _piece("embedder", partial(_embed, segment.embedder), segment.embedder, segment, takes)
    for unit in segment.blocks[0]:
        yield _piece("unit", partial(_apply, unit), unit, segment)
    if segment.head is not None:
        yield _piece("head", partial(_apply, segment.head), segment.head, segment)


def piece_of_converter(converter: nn.Module) -> Piece:
    """The piece of a converter."""
    return Piece(partial(_convert, converter), ("converter",), (converter,))


def _piece(
    name: str,
    call: Callable[[Features | None, Inputs], Features | torch.Tensor],
    run: Callable[..., Any],
    segment: Segment,
    takes: tuple[str, ...] = (),
) -> Piece:
    if isinstance(run, partial) and (modules := tuple(_modules_of(run))):
        return Piece(call, (name, _told(run)), modules, takes)
    # A family may give any callable: what it runs over is not known, and is told by no other.
    return Piece(call, (name, _told(run)), tuple(segment.modules.values()), takes)


def _modules_of(value: object) -> Iterator[nn.Module]:
    """The modules among the arguments of a partial, in their order."""
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, partial):
        yield from _modules_of((*value.args, *value.keywords.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _modules_of(item)


def _embed(embedder: Callable[[Inputs], Features], _: Features | None, inputs: Inputs) -> Features:
    return embedder(inputs)


def _apply(unit: Callable[[Features], Any], features: Features | None, _: Inputs) -> Any:
    return unit(features)  # type: ignore[arg-type]


def _convert(converter: nn.Module, features: Features | None, _: Inputs) -> Features:
    return features._replace(tensor=converter(features.tensor))  # type: ignore[union-attr]


def _run(
    segment: Segment, settings: Mapping[str, Any], features: Features | None, inputs: Inputs
) -> Features | torch.Tensor:
    found: SegmentOutput = segment(features, {**inputs, **settings})
    return found.outputs[-1] if found.logits is None else found.logits


def _built_like(module: nn.Module) -> tuple[object, ...]:
    """What a module computes, its weights aside: classes, settings, and shapes of tensors."""
    return tuple((path, type(part), _settings(part)) for path, part in module.named_modules())


def _settings(module: nn.Module) -> tuple[object, ...]:
    own = {**module._parameters, **module._buffers}
    weights = own.keys() - module._non_persistent_buffers_set
    tensors = [(n, None if t is None else (t.shape, t.dtype) if n in weights else digest(t)) for n, t in own.items()]
    plain = [(name, _told(v, modules=False)) for name, v in vars(module).items() if name not in _KEPT | _PLACES]
    return (*tensors, *plain)


def _told(value: object, *, modules: bool = True) -> object:
    """A setting as something that compares: by value where that is told in full, else by identity.

    Args:
        value: The setting.
        modules: Leave a module open: what it computes is told beside it.
    """
    if value is None or isinstance(value, bool | int | float | complex | str):
        # True is 1 and 0.0 is -0.0 where they are compared, and not where they are computed with.
        return type(value), repr(value)
    if isinstance(value, FunctionType | MethodType):
        return value
    if isinstance(value, torch.Tensor) and type(value) is torch.Tensor:
        return digest(value)
    if isinstance(value, partial):
        return "partial", *(_told(part, modules=modules) for part in (value.func, value.args, value.keywords))
    if isinstance(value, tuple | list):
        return type(value), *(_told(item, modules=modules) for item in value)
    if isinstance(value, Mapping):
        return type(value), *((_told(key), _told(item, modules=modules)) for key, item in value.items())
    if modules and isinstance(value, nn.Module):
        return "module"
    return type(value), id(value)


def digest(tensor: torch.Tensor) -> tuple[object, ...]:
    """A tensor as something that compares: its shape, dtype and a hash of its values."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.shape, tensor.dtype, hashlib.sha256(content.tobytes()).hexdigest()
