"""Several modules as one file: it does what the modules do, and says what was left out."""

from __future__ import annotations

from typing import Any

import pytest

from pwl_hf.modeling.publishing.joining import join

MODULES = {
    "ground.base": '''"""The ground."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..top import Top

    Maker = type[Top]

SIZE = 2  # a comment that stays


class Base:
    """A base."""

    def area(self, of: Top | None = None) -> Base:
        return self


def _half(x: float) -> float:
    return math.floor(x / SIZE)


def make(maker: Maker) -> Top:
    return maker()
''',
    "ground.other": '''"""Another, with a private name of the same kind."""

from __future__ import annotations


def _half(x: float) -> float:
    return x / 2


def halved(x: float) -> tuple[float, str]:
    return _half(x), "_half"


def load() -> object:
    from .base import SIZE

    return SIZE
''',
    "top": '''"""The top."""

from __future__ import annotations

from math import floor as down
from unused import nothing  # noqa

from .ground.base import Base, make
from .ground.other import halved, load

__all__ = ["Top"]


class Top(Base):
    value: int = down(1.5)

    def save(self) -> int:
        """Save."""
        from .saving import save

        if self.value:
            from .saving import more
        return save(self)
''',
}


def joined(**changed: str) -> str:
    sources = {**MODULES, **{name.replace("__", "."): text for name, text in changed.items()}}
    return join("top", sources.__getitem__, header="Generated.", absent="ImportError('absent')")


def run(text: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "joined"}
    exec(compile(text, "joined.py", "exec"), namespace)
    return namespace


def test_the_file_does_what_the_modules_do() -> None:
    found = run(joined())
    assert found["__doc__"] == "Generated."
    assert found["Top"].value == 1
    assert isinstance(found["make"](found["Top"]), found["Base"])
    # A private name of two modules is two things, and a string is no name.
    assert (found["_half"](5), found["halved"](5)) == (2, (2.5, "_half"))
    assert found["load"]() == 2


def test_what_is_not_in_the_file_is_refused_where_it_would_be_imported() -> None:
    text = joined()
    with pytest.raises(ImportError, match="absent"):
        run(text)["Top"]().save()
    assert "saving" not in text
    assert "return save(self)" not in text


def test_comments_stay_and_imports_that_nothing_is_left_of_go() -> None:
    text = joined()
    assert "# a comment that stays" in text
    assert "# The ground." in text
    assert "unused" not in text
    assert "__all__" not in text
    assert "from ." not in text


def test_annotations_that_name_what_comes_later_are_in_quotes_alone() -> None:
    text = joined()
    assert 'def area(self, of: "Top | None" = None) -> "Base":' in text
    assert "def _half(x: float) -> float:" in text


def test_circles_and_public_names_of_two_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"top -> ground\.base -> top is a circle of imports"):
        joined(ground__base="from ..top import Top\n")
    with pytest.raises(ValueError, match=r"ground\.base and ground\.other both define 'make'"):
        joined(ground__other="def make(): ...\ndef halved(): ...\ndef load(): ...\n")
