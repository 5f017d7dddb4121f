"""Copies, pickles and child processes of a model that streams: its stage, no stream, and free to start their own."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub.utils import tqdm
from torch.utils.data import DataLoader

from pwl_hf import PWLForImageClassification, StageError
from tests.repository.helpers import shard
from tests.slow import slow_but
from tests.streaming.helpers import Answers, Pause, Predictions, until, wrap_attach
from tests.streaming.test_serving_threads import asking

forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def in_fork(action: Callable[[], Any], seconds: float = 60) -> Any:
    """What an action returns in a forked child; a child that hangs is killed, and fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            try:
                found = action()
            except BaseException as error:
                found = f"{type(error).__name__}: {error}"
            with os.fdopen(writer, "wb") as file:
                file.write(pickle.dumps(found))
        finally:
            os._exit(0)
    os.close(writer)
    received = io.BytesIO()
    end = time.monotonic() + seconds
    try:
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            data = os.read(reader, 1 << 16)
            if not data:
                return pickle.loads(received.getvalue())
            received.write(data)
        raise AssertionError("the child hangs")
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def look(model: PWLForImageClassification, expected: Answers) -> tuple[int | None, int | None, bool]:
    """The stage a model answers from, the one it says it is at, and whether it has a stream."""
    return expected.stage_now(model), model.stage, model.stream is not None


def grow(model: PWLForImageClassification, expected: Answers) -> list[int | None]:
    """Change the stage in every way, as a copy must be able to."""
    found = []
    with model.stream_stages():
        pass
    found.append(expected.stage_now(model))
    for stage in (1, 0, 3):
        model.set_stage(stage)
        found.append(expected.stage_now(model))
    model.load_next_stage()
    return [*found, expected.stage_now(model)]


GROWN = [4, 1, 0, 3, 4]


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("way", ["deepcopy", "copy", "pickle"])
def test_a_copy_of_a_streaming_model_has_its_stage_and_no_stream(load, answers, family: str, way: str) -> None:
    model, pause, expected = load(family), Pause(2), answers(family)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        other = {
            "deepcopy": copy.deepcopy,
            "copy": copy.copy,
            "pickle": lambda found: pickle.loads(pickle.dumps(found)),
        }[way](model)
        assert look(other, expected) == (2, 2, False)
        assert grow(other, expected) == GROWN
        assert look(model, expected) == (2, 2, True)
    assert stream.wait(60)
    assert (stream.exception, expected.stage_now(model)) == (None, 4)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_at_any_moment_of_a_stream_are_of_one_stage(load, answers, way: Callable) -> None:
    model, found = load("resnet"), []

    def two_more_copies(_: PWLForImageClassification, stage: int) -> None:
        """Hold each stage until a copy has begun and ended in it: the third runs into the next swap."""
        looked = len(found)
        while len(found) < looked + 2:
            assert time.monotonic() < end
            time.sleep(0.001)

    for on_stage in (two_more_copies, None):
        end = time.monotonic() + 60
        stream = model.stream_stages(on_stage=on_stage)
        while not stream.done:
            found.append(look(way(model), answers("resnet")))
        assert stream.wait(60)
        assert stream.exception is None
        model.set_stage(0)
    assert {1, 2, 3, 4} <= {stage for stage, _, _ in found}
    assert [f for f in found if f[0] != f[1] or f[2]] == []


@forking
@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_forked_child_has_the_stage_and_no_stream_and_grows(load, answers, family: str) -> None:
    model, pause, expected = load(family), Pause(2), answers(family)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        assert in_fork(lambda: (look(model, expected), grow(model, expected))) == ((2, 2, False), GROWN)
        # The parent's goes on, and is refused still.
        with pytest.raises(StageError):
            model.load_next_stage()
    assert stream.wait(60)
    assert (stream.exception, expected.stage_now(model)) == (None, 4)


@forking
def test_a_child_forked_while_the_lock_is_held_has_it_free(load, answers) -> None:
    model, held, free = load(), threading.Event(), threading.Event()

    def hold() -> None:
        with model.parts.lock:
            held.set()
            assert free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        assert in_fork(lambda: grow(model, answers())) == GROWN
        assert in_fork(lambda: expected_of_copy(model, answers())) == 0
    finally:
        free.set()
        thread.join()


def expected_of_copy(model: PWLForImageClassification, expected: Answers) -> int | None:
    return expected.stage_now(copy.deepcopy(model.eval()))


@forking
def test_children_forked_at_any_moment_are_whole(load, answers) -> None:
    """No child begins with half a swap: what it answers, says and holds is of one stage, and it can go on."""
    model, expected = load("resnet"), answers("resnet")
    names = {}
    for stage in range(5):
        model.set_stage(stage)
        names[frozenset(model.state_dict())] = stage
    model.set_stage(0)

    def child() -> tuple:
        held = names.get(frozenset(model.state_dict()))
        found = look(model, expected)
        model.set_stage(2)
        return (*found, held, expected.stage_now(model))

    with model.stream_stages() as stream:
        began = time.monotonic()
        assert stream.wait(60)
        lasts = time.monotonic() - began
    model.set_stage(0)
    found = [in_fork(child)]
    for step in range(12):
        model.set_stage(0)
        with model.stream_stages() as stream:
            time.sleep(lasts * step / 10)
            found.append(in_fork(child))
            assert stream.wait(60)
        assert stream.exception is None
    found.append(in_fork(child))
    assert (found[0][0], found[-1][0]) == (0, 4)
    assert [f for f in found if f != (f[0], f[0], False, f[0], 2)] == []


@forking
def test_a_fork_amid_a_swap_waits_for_it(load, answers) -> None:
    model, expected, amid = load(), answers(), threading.Event()

    def attach(plain: Any, made: object) -> None:
        plain(made)
        amid.set()
        time.sleep(0.2)

    wrap_attach(model, attach)
    stream = model.stream_stages(1)
    assert amid.wait(60)
    assert in_fork(lambda: (*look(model, expected), sorted(part.id[:2] for part in model.parts.resident()))) == (
        *(1, 1, False),
        [("encoder", 1), *(("student", i) for i in (2, 3, 4)), ("teacher", 1)],
    )
    assert stream.wait(60)


@forking
def test_a_child_streams_from_the_hub_while_the_parent_does(hub, pull, answers) -> None:
    model, expected = pull(), answers()
    hub.bandwidth = 300_000
    stream = model.stream_stages()
    until(lambda: any(r.file == shard(1) for r in hub.requests))
    assert in_fork(lambda: grow(model, expected)) == GROWN
    assert stream.wait(60)
    assert (stream.exception, expected.stage_now(model)) == (None, 4)


@forking
def test_a_child_that_ends_normally_ends(load) -> None:
    model, pause = load(), Pause(1)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        process = multiprocessing.get_context("fork").Process(target=sys.exit, args=(0,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    assert stream.wait(60)


@pytest.mark.parametrize("method", slow_but(["fork"], ["fork", "spawn"]))
def test_a_data_loaders_worker_predicts_and_grows(load, answers, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"the system cannot {method}")
    model, pause, expected = load(), Pause(2), answers()
    stream = model.stream_stages(on_stage=pause)
    with pause:
        data = Predictions(model, expected.images)
        loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=method, timeout=120)
        (found,) = list(loader)
    assert stream.wait(60)
    assert (stream.exception, expected.stage_now(model)) == (None, 4)
    assert (found["has_stream"], found["stage"]) == (False, 4)
    assert [expected.stage_of(found[name]) for name in ("first", "last")] == [2, 4]


@forking
def test_forks_under_load_answer_alike(load, answers) -> None:
    model, expected, wrong = load(), answers(), []

    def ask(_: int) -> None:
        if expected.stage_of(model(expected.images).logits) is None:
            wrong.append(1)

    with asking(ask, threads=4):
        for _ in range(3):
            stream = model.stream_stages()
            answered, said, has_stream = in_fork(lambda: look(model, expected))
            assert (answered, has_stream) == (said, False)
            stream.wait()
            model.set_stage(0)
    assert wrong == []


@forking
def test_a_child_streams_though_a_thread_of_the_parent_held_the_lock_of_progress_bars(hub, pull, answers) -> None:
    model, expected = pull(), answers()
    lock, held = tqdm.get_lock(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            time.sleep(1)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    assert in_fork(lambda: grow(model, expected)) == GROWN
    holder.join()
