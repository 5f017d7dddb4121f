"""What the measures of serving are made of: a fresh process, its memory, requests and their latencies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.speed.answering import Answer, Client, quantile
from benchmarks.speed.fresh import Fresh
from benchmarks.speed.measures.streaming import by_stage
from benchmarks.speed.measures.swaps import Swaps, worked
from benchmarks.speed.memory import Sampler, memory_of, watch
from benchmarks.speed.plots.requests import draw

WORKS = "tests.benchmarks.works"
MB = 10**6


def test_memory_of_a_fresh_process_shows_what_it_holds_and_nothing_of_its_imports():
    found = watch({"little": (f"{WORKS}:hold", {"size": 10 * MB}), "much": (f"{WORKS}:hold", {"size": 50 * MB})})
    for name, size in (("little", 10 * MB), ("much", 50 * MB)):
        seen = found[name]
        assert seen.result == size
        assert [mark for mark, _ in seen.marks] == ["begin", "held"]
        assert seen.baseline.private > 30 * MB
        for count in ("private", "proportional", "resident"):
            assert size - MB <= seen.peak(count) <= size + MB
        assert size - MB <= seen.highest_resident <= size + MB
        assert seen.series()["marks"][0] == [0, "begin"]
        assert seen.samples == sorted(seen.samples, key=lambda sample: sample.at)


def test_a_file_mapped_twice_is_private_no_more_but_whole_in_the_proportional_size(tmp_path):
    size = 20 * MB
    (tmp_path / "file").write_bytes(b"x" * size)
    seen = watch({"": (f"{WORKS}:map_twice", {"path": str(tmp_path / "file")})})[""]
    counts = {
        name: [getattr(memory, c) - getattr(seen.baseline, c) for c in ("private", "proportional", "resident")]
        for name, memory in seen.marks
    }
    assert [round(count / size) for count in counts["once"]] == [1, 1, 1]
    assert [round(count / size) for count in counts["twice"]] == [0, 1, 2]


def test_sampler_sees_what_was_there_for_a_moment():
    before = memory_of()
    with Sampler(interval=0.005) as sampler:
        kept = torch.ones(10 * MB)
        seen = len(sampler.samples)
        while len(sampler.samples) < seen + 2:
            time.sleep(0.005)
        del kept
    assert max(sample.private for sample in sampler.samples) - before.private > 35 * MB


@pytest.mark.usefixtures("forked")
def test_function_that_fails_is_told_of(capfd):
    with Fresh(f"{WORKS}:fail", {}) as process, pytest.raises(RuntimeError, match="ended with code 1"):
        process.run()
    assert "ValueError: on purpose" in capfd.readouterr().err


@pytest.mark.usefixtures("forked")
def test_process_that_is_not_there_has_no_memory():
    with Fresh(f"{WORKS}:fail", {}) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        memory_of(process.pid)


def test_client_asks_one_after_the_other_and_knows_what_was_asked_while_nothing_else_was_done():
    stage = 0

    def ask() -> int:
        found = stage
        time.sleep(0.01)
        return found

    with Client(ask) as client:
        before = client.within(client.rest(seconds=60, most=5))
        stage = 1
        after = client.within(client.rest(seconds=0.05, most=10**6))
    assert {answer.stage for answer in before} == {0}
    assert len(before) >= 4
    assert {answer.stage for answer in after} == {1}
    assert all(answer.seconds >= 0.01 > answer.worked for answer in client.answers)
    assert all(b.began >= a.ended for a, b in zip(client.answers, client.answers[1:], strict=False))


def test_request_that_fails_ends_who_waits_for_it():
    def ask() -> int:
        raise ValueError("on purpose")

    with pytest.raises(RuntimeError, match="no more requests are sent"), Client(ask) as client:
        client.wait(1)


def test_request_that_fails_while_nobody_waits_is_raised_at_the_end():
    def ask() -> int:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"), Client(ask):
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(1, 0.99, 1), (20, 0.95, 19), (100, 0.99, 99), (101, 0.99, 100), (3, 0.5, 2)]
)
def test_quantile_is_a_value_that_was_seen(count, share, expected):
    assert quantile(list(range(count, 0, -1)), share) == expected


def test_swap_costs_what_its_worst_request_takes_beyond_the_idle_p95_of_its_own_stage():
    def answers(start: float, seconds: list[float], stage: int) -> list[Answer]:
        found = []
        for each in seconds:
            found.append(Answer(start, each, each / 2, stage))
            start += each
        return found

    idle = answers(100, [1.0] * 19 + [9.0], 0) + answers(200, [3.0] * 20, 1)
    # Far from the swap, 50; under way at it, 1.5; after it 3.25, of a stage whose requests take 3.
    around = answers(0, [50.0, 1, 1, 1.5], 0)
    around += answers(around[-1].ended, [3.25, 3, 50], 1)
    found = Swaps()
    found.add(around, [around[3].began + 0.1], idle)
    assert found.excesses() == [0.5]
    assert found.excesses(worked) == [0.25]
    assert found.idle_quantile(0.5) == {0: 1, 1: 3}


def test_requests_are_held_against_their_own_stage():
    rows = [[0.0, 10.0, 5.0, 0], [1.0, 20.0, 6.0, 0], [2.0, 300.0, 7.0, 1]]
    assert by_stage(rows, 1, max) == {0: 20, 1: 300}
    assert by_stage(rows, 2, max) == {0: 6, 1: 7}


def test_requests_are_drawn(tmp_path):
    found = {"requests": [[0.0, 10.0, 5.0, 0], [1.0, 20.0, 6.0, 1]], "idle": [[9, 9, 9, 0], [9, 9, 9, 1]]}
    draw({"a": found | {"marks": [[0.5, 1]]}, "b": found | {"marks": [[0.7, 1]]}}, tmp_path / "deeper" / "a.png")
    assert Path(tmp_path / "deeper" / "a.png").read_bytes().startswith(b"\x89PNG")
