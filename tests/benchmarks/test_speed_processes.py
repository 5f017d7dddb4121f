"""Processes that are timed: what they do, what they say, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.speed.child import Task
from benchmarks.speed.figures import Place
from benchmarks.speed.hub import PWL, Hub, environment, serving_pair
from benchmarks.speed.launching import PWL_CLASS, fresh, imported, plain_class
from benchmarks.speed.pairs import pairs

STAND_IN = "tests.benchmarks.growing_stand_in:Growing"
SIZE = 4


@pytest.fixture(scope="module")
def hub(tiny) -> Iterator[Hub]:
    with serving_pair(tiny) as hub:
        yield hub


def test_fresh_process_that_fetches_ahead_does_so_while_it_imports(tiny, hub, tmp_path):
    hub.take()
    run = fresh(Task(PWL_CLASS, PWL, tiny.pair.size, "ahead"), hub.environment(tmp_path))
    marks = run.marks
    assert 0 < marks["began"] < marks["imported"] < marks["loaded"] < marks["answered"] <= run.seconds
    (weights,) = [asked for asked in hub.take() if asked.file == "model.safetensors" and asked.method == "GET"]
    assert weights.at - run.start < marks["imported"]
    assert (tmp_path / "hub").is_dir()


def test_forks_do_their_tasks_each_by_itself_and_one_that_fails_is_an_error(tmp_path):
    ways = ("first", "stages", "stream")
    with imported([Task(STAND_IN, "good", SIZE)], environment(tmp_path)) as run:
        runs = {way: run(Task(STAND_IN, "good", SIZE, way)) for way in ways}
        with pytest.raises(RuntimeError, match="ended with code 1"):
            run(Task(STAND_IN, "missing", SIZE))
    assert {way: len(runs[way].stages) for way in ways} == {"first": 1, "stages": 3, "stream": 3}
    for done in runs.values():
        assert 0 <= done.marks["imported"] < done.stages[0] <= done.stages[-1] <= done.seconds == done.marks["answered"]
    assert "first" in runs["stream"].marks
    assert runs["first"].start < runs["stages"].start < runs["stream"].start


def test_process_whose_answer_is_no_number_is_an_error_and_no_time(tmp_path):
    with pytest.raises(RuntimeError, match="ended with code 1"):
        fresh(Task(STAND_IN, "not finite", SIZE), environment(tmp_path))


def test_plain_networks_are_imported_as_users_do(tiny):
    assert plain_class(tiny) == "transformers:ViTForImageClassification"
    assert plain_class(Place("vgg", pairs()["vgg"], Path(), 1)) == "pwl_hf:VGGForImageClassification"
