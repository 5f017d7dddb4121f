"""What the tests of the benchmarks share."""

from __future__ import annotations

import pytest

from benchmarks.recipes.definitions import Definitions, load_definitions
from tests.benchmarks.stand_ins import write_definitions


@pytest.fixture
def definitions(tmp_path) -> Definitions:
    return load_definitions(write_definitions(tmp_path / "definitions"))
