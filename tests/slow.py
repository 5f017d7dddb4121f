"""Which cases of many the suite runs; the others are marked `slow`, and run with `make slow`.

@pytest.mark.parametrize("family", slow_but(["vit", "resnet"], FAMILIES))
@pytest.mark.parametrize(("method", "kind", "path"), covering([("GET", "reset"), ("HEAD", "stall")], PATHS))
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import product
from typing import Any

import pytest


def slow_but(quick: Collection[object], cases: Iterable[Any]) -> list[Any]:
    """The cases as they are, but those that are not among the quick ones are slow."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def covering(*axes: Sequence[Any]) -> list[Any]:
    """Every combination of a value of each axis; as few as have every value of every axis in them are not slow.

    Args:
        axes: The values of each; a tuple is several arguments.
    """
    quick = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    found = []
    for places in product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        given = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
        found.append(pytest.param(*given, marks=() if places in quick else pytest.mark.slow))
    return found
