"""What the measures of serving are made of: a fresh process, its memory, requests and their latencies."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.speed.fresh import Fresh
from benchmarks.speed.memory import Sampler, memory_of, watch

WORKS = "tests.benchmarks.works"
MB = 10**6


def test_memory_of_a_fresh_process_shows_what_it_holds_and_nothing_of_its_imports():
    found = watch({"little": (f"{WORKS}:hold", {"size": MB}), "much": (f"{WORKS}:hold", {"size": 50 * MB})})
    for name, size in (("little", MB), ("much", 50 * MB)):
        seen = found[name]
        assert seen.result == size
        assert [mark for mark, _ in seen.marks] == ["begin", "held"]
        assert seen.baseline.private > 30 * MB
        for count in ("private", "proportional", "resident"):
            assert size - MB / 4 <= seen.peak(count) <= size + MB
        assert size - MB / 4 <= seen.highest_resident <= size + MB
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
        time.sleep(0.1)
        del kept
    assert max(sample.private for sample in sampler.samples) - before.private > 35 * MB


def test_function_that_fails_is_told_of(capfd):
    with Fresh(f"{WORKS}:fail", {}) as process, pytest.raises(RuntimeError, match="ended with code 1"):
        process.run()
    assert "ValueError: on purpose" in capfd.readouterr().err


def test_process_that_is_not_there_has_no_memory():
    with Fresh(f"{WORKS}:fail", {}) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        memory_of(process.pid)
