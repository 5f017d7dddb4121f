"""Every benchmark runs; what it measures is not looked at."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.timing import Spread, interleaved


@pytest.mark.parametrize("temperature", [[], ["--cold"]])
def test_loading_writes_a_table_and_json(tmp_path, temperature):
    output = tmp_path / "runs.json"
    arguments = ["loading", "--pair", "tiny", "--repeats", "2", "--data", str(tmp_path), "--output", str(output)]
    done = CliRunner().invoke(app, [*arguments, *temperature])
    assert done.exit_code == 0, done.output
    assert "| pwl first answer |" in done.output
    (run,) = json.loads(output.read_text()).values()
    assert run["seconds"]["teacher"]["count"] == 2


def test_unknown_pair_is_refused_by_name():
    done = CliRunner().invoke(app, ["loading", "--pair", "gpt"])
    assert done.exit_code != 0
    assert "gpt" in done.output


def test_first_round_does_not_count():
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert {spread.count for spread in found.values()} == {3}


def test_spread_is_median_and_quartiles():
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 1.5, 4.5, 5)
