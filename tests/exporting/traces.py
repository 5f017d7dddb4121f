"""Tracing that remembers: the graph of a kind of piece is the same in every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from transformers import PreTrainedConfig

from pwl_hf.modeling.exporting import graphs, pieces
from pwl_hf.modeling.exporting.examples import Examples
from pwl_hf.modeling.exporting.pieces import Piece, digest
from pwl_hf.modeling.exporting.tracing import Template


def told_by_value(told: Callable[..., Any]) -> Callable[..., Any]:
    """`pieces._told`, for which configs of two models are the same if they say the same."""

    def tell(value: object, **options: Any) -> object:
        if isinstance(value, PreTrainedConfig):
            return value.to_json_string(use_diff=False), value._attn_implementation
        return told(value, **options)

    return tell


class Traces:
    """`trace`, called once for all pieces that are built alike.

    Args:
        trace: The real one.
    """

    def __init__(self, trace: Callable[..., Template]) -> None:
        self.trace = trace
        self._known: dict[Any, Template] = {}
        # What is told by its identity must live on.
        self._pieces: list[Piece] = []

    def __call__(self, piece: Piece, features: Any, examples: Examples, weights: set[str]) -> Template:
        tensors = piece.tensors()
        first: dict[int, str] = {}
        tied = tuple(first.setdefault(id(tensor), name) for name, tensor in tensors.items())
        constants = tuple((name, digest(tensor)) for name, tensor in tensors.items() if name not in weights)
        size = None if features is None else (tuple(features.tensor.shape[1:]), features.grid)
        shapes = tuple((name, tuple(tensor.shape[1:])) for name, tensor in examples.traced.items())
        key = (piece.signature(), size, shapes, tuple(sorted(weights)), tied, constants)
        if key not in self._known:
            self._pieces.append(piece)
            self._known[key] = self.trace(piece, features, examples, weights)
        return self._known[key]


_TRACES = Traces(graphs.trace)


@contextmanager
def traced_once() -> Iterator[None]:
    """Within the block a piece that was traced before, in any such block of the process, is not traced again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "trace", _TRACES)
        patch.setattr(pieces, "_told", told_by_value(pieces._told))
        yield
