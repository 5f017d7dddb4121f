"""kill -9 at random moments of streaming, downloading, saving and pushing; what is left always loads, or is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pwl_hf import PWLForImageClassification, RepositoryError
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.quantising import quantise_repository
from tests.children import Child
from tests.repository.helpers import contents, load, logits
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


def times_of(*kinds: tuple[str, ...]) -> list[Any]:
    """Each kind a few times, which is slow but for the first one, and 50 times."""
    return [
        pytest.param(*kind, times, id=f"{'-'.join(kind)}-{times} times", marks=() if is_quick else pytest.mark.slow)
        for kind in kinds
        for times, is_quick in ((4, kind == kinds[0]), (50, False))
    ]


Start = Callable[..., int]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Have a child forked that runs a command of the fork server; its pid."""
    command = [sys.executable, "-m", "tests.faults.fork_server"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with Child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"

        def run(*words: object) -> int:
            server.stdin.write(" ".join(map(str, words)) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield run
        server.stdin.close()


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def kill_after(pid: int, started: Path, seconds: float) -> bool:
    """Kill a child so long after it began; whether it was still at work."""
    until(started.exists)
    time.sleep(seconds)
    at_work = is_alive(pid)
    if at_work:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))
    started.unlink()
    return at_work


@pytest.mark.parametrize(
    ("kind", "repository", "expected", "times"),
    times_of(
        ("stream", "pushed_rungs", "rung_answers"), ("stream", "pushed", "answers"), ("download", "pushed", "answers")
    ),
)
def test_killed_download_leaves_a_cache_that_loads_every_stage_exactly(
    hub, request, start, tmp_path, kind, repository, expected, times
):
    pushed, answers = request.getfixturevalue(repository), request.getfixturevalue(expected)
    chance, caught = random.Random(times), 0
    hub.bandwidth = 2_000_000
    cache, started = tmp_path / "cache", tmp_path / "started"
    for _ in range(times):
        pid = start(kind, pushed, cache, started)
        caught += kill_after(pid, started, chance.uniform(0, 0.12))
        # The clean run after it has the same cache, whatever is in it.
        hub.bandwidth = None
        with hub.record() as requests:
            model = load(pushed, cache_dir=cache, stage=chance.randrange(4))
            for stage in range(len(answers)):
                model.set_stage(stage)
                assert torch.equal(logits(model), answers[stage])
        hub.bandwidth = 2_000_000
        # Every other time the next one begins with nothing.
        if requests and chance.random() < 0.5:
            cache = tmp_path / f"cache-{time.monotonic_ns()}"
    assert caught >= times // 2


@pytest.mark.parametrize(("second", "times"), times_of(("plain",), ("rungs",)))
def test_killed_save_leaves_one_model_or_what_is_refused(start, tmp_path, times, second):
    models = [tiny_model("resnet", seed=seed) for seed in (0, 1)]
    if second == "rungs":
        models[1].add_tier()
    expected = [answers_of(model) for model in models]
    folder, started = tmp_path / "repo", tmp_path / "started"
    models[0].save_pretrained(tmp_path / "clean")
    chance, outcomes = random.Random(times), []
    for _ in range(times):
        pid = start("save", folder, started, second)
        assert kill_after(pid, started, chance.uniform(0.0, 0.3))
        seen = set()
        for stage in range(9):
            try:
                answer = logits(load(folder, stage=stage))
            except RepositoryError:
                continue
            except ValueError:
                assert stage > 4  # There is no such stage of the plain one.
                continue
            seen |= {seed for seed in (0, 1) if is_one_of(answer, expected[seed][stage:][:1])} or {"neither"}
        assert seen in (set(), {0}, {1})
        outcomes.append(seen)
        models[0].save_pretrained(folder)
        # Nothing of the killed one is left.
        assert contents(folder) == contents(tmp_path / "clean")
        assert torch.equal(logits(load(folder, stage=4)), expected[0][4])
    assert len(outcomes) == times


def answers_of(model: PWLForImageClassification) -> list[torch.Tensor]:
    found = []
    for stage in range(model.num_stages + 1):
        model.set_stage(stage)
        found.append(logits(model))
    model.set_stage(0)
    return found


def is_one_of(answer: torch.Tensor, expected: list[torch.Tensor]) -> bool:
    return any(torch.equal(answer, one) for one in expected)


@pytest.mark.parametrize("times", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_low_precision_killed_while_it_is_added_or_taken_out_leaves_a_whole_repository(start, tmp_path, times):
    plain, rungs = tiny_model("resnet"), tiny_model("resnet")
    rungs.add_tier()
    expected = {model.num_stages: answers_of(model) for model in (plain, rungs)}
    folder, started, seen = tmp_path / "repo", tmp_path / "started", set()
    rungs.save_pretrained(tmp_path / "clean")
    plain.save_pretrained(folder)
    chance = random.Random(times)
    for _ in range(times):
        pid = start("quantise", folder, started, 10_000)
        assert kill_after(pid, started, chance.uniform(0.0, 0.5))
        # The weights of both are the same files: there is no moment at which one is not whole.
        last = load(folder).num_stages
        for stage, answer in enumerate(expected[last]):
            assert torch.equal(logits(load(folder, stage=stage)), answer)
        seen.add(last)
        quantise_repository(str(folder), target=Target("none"))
        assert contents(folder) == contents(tmp_path / "clean")
    assert seen <= {4, 8}


def whole_of(files: Mapping[str, bytes], one: Mapping[str, bytes]) -> bool:
    """Whether a commit holds every file of a model, and no weights besides."""
    weights = {path for path in files if path.endswith(".safetensors")}
    return weights <= one.keys() and {path: files.get(path) for path in one} == one


@pytest.mark.parametrize(("second", "times"), times_of(("plain",), ("rungs",)))
def test_killed_push_leaves_the_old_repository_or_the_new_one(hub, repo_id, start, tmp_path, times, second):
    models = [tiny_model("vit", num_stages=2, seed=seed) for seed in (0, 1)]
    if second == "rungs":
        models[1].add_tier()
    expected = []
    for seed, model in enumerate(models):
        model.save_pretrained(tmp_path / str(seed))
        expected.append(contents(tmp_path / str(seed)))
    models[0].push_to_hub(repo_id)
    hub.bandwidth = 2_000_000
    started, chance, whole = tmp_path / "started", random.Random(times), set()
    for turn in range(times):
        pid = start("push", repo_id, started, second)
        # A push takes about half a second of this.
        assert kill_after(pid, started, chance.uniform(0.0, 1.5))
        for oid in {commit.oid for commit in hub.store.commits(repo_id)[:-1]} - whole:
            files = hub.store.files(repo_id, oid)
            # Every commit there ever was is one whole model.
            assert [whole_of(files, one) for one in expected].count(True) == 1
            whole.add(oid)
        models[turn % 2].push_to_hub(repo_id)
        assert whole_of(hub.store.files(repo_id), expected[turn % 2])
    answer = logits(load(repo_id, cache_dir=tmp_path / "cache", stage="teacher"))
    models[(times - 1) % 2].set_stage("teacher")
    assert torch.equal(answer, logits(models[(times - 1) % 2]))
