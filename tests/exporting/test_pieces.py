"""Layers that are built alike share a graph; those that compute otherwise are never taken for each other."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from pwl_hf import SaveError
from pwl_hf.modeling.exporting import graphs
from pwl_hf.modeling.exporting.pieces import Piece
from tests.exporting.helpers import assert_equals_torch, small_model
from tests.exporting.odd_net import odd_images, odd_model
from tests.repository.helpers import tree
from tests.tiny import tiny_model

# Each differs from a plain layer in one thing that its weights do not tell.
KINDS = [
    "eps",
    "dropout",
    "activation",
    "callable",
    "number",
    "array",
    "hidden",
    "index",
    "buffer",
    "forward",
    "hook",
    "pre-hook",
    "hook-inside",
    "parametrized",
    "closure",
    "argument",
    "long-argument",
    "nested",
    "beside",
]
NEIGHBOURS = [
    *[("plain", kind) for kind in KINDS],
    ("long-argument", "other-long-argument"),
    ("nested", "other-nested"),
    ("beside", "other-beside"),
    ("argument", "nested"),
    ("closure", "closure"),
]


@pytest.fixture
def traced(monkeypatch):
    """How often each kind of piece is traced."""
    counts: Counter[str] = Counter()
    real = graphs.trace

    def counting(piece, *rest):
        counts[piece.kind[0]] += 1
        return real(piece, *rest)

    monkeypatch.setattr(graphs, "trace", counting)
    return counts


def units(model):
    """The pieces of the teacher's layers."""
    from pwl_hf.modeling.exporting.pieces import pieces_of_block

    route = model._router.of("T" * model.config.num_blocks)
    pieces = (piece for block in range(1, len(route.sources) + 1) for piece in pieces_of_block(route, block, "x", {}))
    return [piece for piece in pieces if piece.kind[0] == "unit"]


@pytest.mark.usefixtures("odd_net")
@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_neighbours_are_told_apart(one, other):
    first, second = (piece.signature() for piece in units(odd_model(f"{one} {other}")))
    assert first != second
    assert first == units(odd_model(f"{one} {other}"))[0].signature() or one in ("closure", "callable", "nested")


@pytest.mark.usefixtures("odd_net")
def test_plain_ones_are_alike_wherever_they_stand():
    first, second = (piece.signature() for piece in units(odd_model("plain plain")))
    assert first == second
    assert hash(first) == hash(second)


@pytest.mark.usefixtures("odd_net")
def test_odd_layers_among_plain_ones_equal_torch(traced, tmp_path):
    kinds = ["hook", "buffer", "hidden", "nested"]
    layers = " ".join(f"plain {kind}" for kind in kinds)
    odd_model(layers, "plain " * 8, num_stages=4).export(tmp_path)
    assert traced["unit"] == 1 + len(kinds)
    assert_equals_torch(tmp_path, {1: odd_images(1), 3: odd_images(3)})


@pytest.mark.slow
@pytest.mark.usefixtures("odd_net")
@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_neighbours_equal_torch(traced, tmp_path, one, other):
    odd_model(f"{one} {other}").export(tmp_path)
    assert traced["unit"] == len({one, other, "plain"} if one != other else "121")
    assert_equals_torch(tmp_path, {1: odd_images(1), 3: odd_images(3)})


@pytest.mark.usefixtures("odd_net")
def test_a_layer_that_computes_with_its_place_is_refused_and_nothing_is_written(tmp_path):
    """A layer's index tells nothing of what it computes, usually. Where it does, the proof sees it."""
    model = odd_model("place place")
    model.save_pretrained(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(SaveError, match=r"nothing was written: the graphs of stage 2 \(TT\) differ from torch by"):
        model.export(tmp_path)
    assert tree(tmp_path) == before


def test_swins_shifted_windows_are_another_layer():
    first, second, third = units(small_model("swin"))
    assert len({first.signature(), second.signature(), third.signature()}) == 3


def test_layers_of_a_vit_are_alike_wherever_they_stand():
    assert len({piece.signature() for piece in units(tiny_model("vit"))}) == 1


class Gain(nn.Module):
    """A module with whatever else one may have."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        for name, value in settings.items():
            setattr(self, name, value)


SETTINGS = [
    (1, True),
    (1, 1.0),
    (0.0, -0.0),
    (None, "None"),
    ((1, 2), [1, 2]),
    ("a", "b"),
    ({"a": 1}, {"a": 2}),
    (torch.ones(3), torch.zeros(3)),
    (torch.ones(3), torch.ones(3, dtype=torch.float64)),
    (torch.ones(2, 3), torch.ones(3, 2)),
    (torch.ones(5000), torch.cat([torch.ones(2500), torch.zeros(1), torch.ones(2499)])),
    ([torch.ones(3)], [torch.zeros(3)]),
    (torch.tanh, torch.sin),
    (torch.float32, torch.float64),
    ([nn.Linear(2, 2)], [nn.Linear(2, 2)]),
    (object(), object()),
]


@pytest.mark.parametrize("name", ["setting", "_setting"])
@pytest.mark.parametrize(("one", "other"), SETTINGS, ids=range(len(SETTINGS)))
def test_settings_are_compared_in_full(name, one, other):
    def signature(value):
        return Piece(len, ("unit",), (Gain(**{name: value}),)).signature()

    assert signature(one) == signature(one)
    assert hash(signature(one)) == hash(signature(one))
    assert signature(one) != signature(other)


def test_buffers_are_told_by_value_where_no_file_has_them():
    def signature(value, persistent):
        module = Gain()
        module.register_buffer("factor", torch.full((2,), value), persistent=persistent)
        return Piece(len, ("unit",), (module,)).signature()

    assert signature(1.0, False) != signature(2.0, False)
    assert signature(1.0, True) == signature(2.0, True)
    assert signature(1.0, True) != signature(1.0, False)


def test_a_module_that_is_used_twice_is_not_two():
    once, twice = Gain(), Gain()
    once.other, twice.other = nn.Linear(4, 4), twice.linear
    assert Piece(len, ("unit",), (once,)).signature() != Piece(len, ("unit",), (twice,)).signature()
