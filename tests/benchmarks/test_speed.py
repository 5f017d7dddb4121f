"""The suite of speed: every measure runs; how long anything takes is not looked at."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.speed.command import measured
from benchmarks.speed.figures import Figure, ratios
from benchmarks.speed.goals import Goal, load_goals
from benchmarks.speed.measures import forward
from benchmarks.speed.suite import SUITE
from benchmarks.speed.tables import render
from benchmarks.speed.timing import Spread, interleaved
from tests.slow import slow_but

# Those whose rounds need no process that imports everything; one that does is run below.
QUICK = {
    *("loading-warm", "loading-cold", "step-down", "rungs-bytes", "installed-size", "runtime-forward", "floor-warm"),
    *("forward", "hashing", "swaps", "runtime-swaps", "alternatives-warm", "alternatives-accuracy"),
}


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", slow_but(QUICK, SUITE))
def test_every_measure_runs_and_has_the_figures_that_goals_are_set_for(name, tiny, monkeypatch):
    if (needed := SUITE[name].needs) is not None:
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.setattr(forward, "_SECONDS", 0.002)
    found = json.loads(json.dumps(measured(name, tiny)))
    names = [figure["name"] for figure in found["figures"]]
    assert len(set(names)) == len(names) > 0
    assert set(load_goals().get(name, {})) <= set(names)
    # What is no ratio may be a difference.
    assert all(figure["value"]["median"] >= 0 for figure in found["figures"] if figure["unit"] == "x")


@pytest.mark.usefixtures("forked")
def test_command_stores_the_measure_and_draws_the_table(tmp_path):
    arguments = ["speed", "--pair", "tiny", "--repeats", "2", "--only", "loading-warm"]
    done = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "data"), "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| first answer |" in done.output
    assert (tmp_path / "speed.md").read_text() in done.output
    (stored,) = json.loads((tmp_path / "speed.json").read_text())["measures"].items()
    assert stored[0] == "loading-warm/tiny"
    assert stored[1]["figures"][0]["value"]["count"] == 2


@pytest.mark.parametrize("option", ["--pair", "--only"])
def test_unknown_name_is_refused(option):
    done = CliRunner().invoke(app, ["speed", option, "gpt"])
    assert done.exit_code != 0
    assert "gpt" in done.output


def test_what_is_not_measured_is_visibly_missing():
    assert "vit-b: not measured yet." in render({}, ["vit-b"], "command")


def test_other_pairs_are_shown_where_they_were_measured():
    entry = {"figures": [], "device": "CPU", "date": "2026-01-01T00:00:00"}
    figure = {"name": "first answer", "value": vars(Spread.of([0.2])), "unit": "x", "base": None}
    text = render({"loading-warm/vgg": {**entry, "figures": [figure]}}, ["vit-b"], "command")
    assert text.count("| vgg | median |") == 1
    assert "vgg: not measured yet" not in text
    assert "one round." in text


def test_goals_are_judged_by_median():
    goal = Goal(must=0.5, aim=0.25)
    assert [goal.judge(value) for value in (0.25, 0.5, 0.7)] == ["aim met", "met", "**missed** by 0.2"]
    assert set(load_goals()) <= set(SUITE)


def test_ratios_are_of_the_same_round():
    (found,) = ratios({"whole": [2.0, 4.0], "part": [1.0, 2.0]}, "whole", "the whole")
    assert found == Figure("part", Spread(0.5, 0.5, 0.5, 2), base="the whole")


def test_first_round_does_not_count():
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert {len(times) for times in found.values()} == {3}


def test_spread_is_median_and_quartiles():
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 1.5, 4.5, 5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)
