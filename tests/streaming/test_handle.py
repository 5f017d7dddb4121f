"""The handle of a stream: what it says, when it ends, and what it leaves."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from pwl_hf import FetchError, PWLForImageClassification, RepositoryError, RetryPolicy, StageError
from tests.hub import Fault
from tests.repository.helpers import bodies, encoder, shard
from tests.streaming.helpers import Pause, own_threads, until

# --- To the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "swin", "resnet", "pwl_vgg"])
def test_a_stream_ends_at_the_teacher_and_answers_as_it(load, answers, family: str) -> None:
    model = load(family)
    stream = model.stream_stages()
    assert stream.wait(60) is True
    assert (stream.done, stream.exception, stream.cancelled) == (True, None, False)
    assert (stream.stage, stream.until_stage, model.stage) == (4, 4, 4)
    assert answers(family).stage_now(model) == 4
    assert model.stream is stream


def test_until_stage_is_the_last_one(load, answers) -> None:
    model = load()
    with model.stream_stages(2) as stream:
        pass
    assert (stream.stage, stream.until_stage, model.sources) == (2, 2, "TTSS")
    assert answers().stage_now(model) == 2


def test_on_stage_is_called_in_order_in_the_background(load, answers) -> None:
    model, calls = load(), []

    def on_stage(grown: PWLForImageClassification, stage: int) -> None:
        calls.append((grown is model, stage, grown.stage, answers().stage_now(grown), threading.current_thread()))

    model.stream_stages(on_stage=on_stage).wait()
    assert [call[:4] for call in calls] == [(True, k, k, k) for k in (1, 2, 3, 4)]
    assert {call[4] for call in calls} != {threading.current_thread()}
    assert len({call[4] for call in calls}) == 1


def test_bytes_are_those_of_the_new_files(load, saved) -> None:
    sizes = [(saved("vit") / path).stat().st_size for path in (shard(2), encoder(2), shard(3), encoder(3))]
    model, pause = load(stage=1), Pause(2)
    stream = model.stream_stages(3, on_stage=pause)
    with pause:
        assert (stream.bytes_done, stream.bytes_total) == (sum(sizes[:2]), sum(sizes))
        assert (stream.stage, stream.done) == (2, False)
    stream.wait()
    assert stream.bytes_done == stream.bytes_total == sum(sizes)


def test_a_cached_stream_asks_for_nothing_and_counts_the_same(hub, pull) -> None:
    first = pull().stream_stages()
    first.wait()
    model = pull()
    with hub.record() as requests:
        second = model.stream_stages()
        second.wait()
    assert requests == []
    assert second.bytes_done == first.bytes_done == first.bytes_total > 0
    assert model.stage == 4


def test_nothing_left_to_stream_is_an_end_at_once(load) -> None:
    for model, last in ((load(stage=4), "teacher"), (load(stage=2), 2)):
        stream = model.stream_stages(last)
        assert stream.wait(60)
        assert (stream.stage, stream.bytes_total, stream.exception) == (model.stage, 0, None)


def test_wait_with_a_timeout_tells_that_it_has_not_ended(load) -> None:
    model, pause = load(), Pause()
    stream = model.stream_stages(on_stage=pause)
    with pause:
        assert stream.wait(0) is False
        assert stream.wait(0.05) is False
        assert (stream.done, stream.exception) == (False, None)
    assert stream.wait(60) is True


# --- At once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [False, True])
def test_from_pretrained_with_stream_grows_on_its_own(hub, pull, repo_id, tmp_path, answers, auto: bool) -> None:
    pull()
    # Nothing of a later stage comes before the first answer.
    hub.faults.append(Fault("stall", "/teacher/", seconds=3600, times=None))
    load = (AutoModelForImageClassification if auto else PWLForImageClassification).from_pretrained
    model = load(repo_id, cache_dir=tmp_path / "second", stream=True)
    assert (model.stage, answers().stage_now(model)) == (0, 0)
    hub.reset()
    assert model.stream.wait(60)
    assert (model.stage, answers().stage_now(model)) == (4, 4)


def test_stream_begins_at_the_stage_asked_for(load) -> None:
    model = load(stage=2, stream=True)
    model.stream.wait()
    assert (model.stream.stage, sorted(model.stream._plan)) == (4, [3, 4])


# --- Cancelled --------------------------------------------------------------------------------------------------


def test_cancelled_amid_a_download_it_ends_and_leaves_the_stage(hub, pull, answers) -> None:
    model = pull()
    # For hours.
    hub.bandwidth = 1
    stream = model.stream_stages()
    until(lambda: shard(1) in bodies(hub.requests))
    stream.cancel()
    assert stream.wait(60)
    assert (stream.cancelled, stream.exception, stream.stage, model.stage) == (True, None, 0, 0)
    assert answers().stage_now(model) == 0
    # A new stream does not wait for the old one's rest, and goes on.
    hub.bandwidth = None
    with model.stream_stages():
        pass
    assert (model.stage, answers().stage_now(model)) == (4, 4)
    until(lambda: not own_threads())


def test_a_cancelled_download_is_not_gone_on_with(hub, pull) -> None:
    model = pull()
    with hub.faulty(Fault("stall", shard(1), after=1000, seconds=3600)):
        stream = model.stream_stages()
        until(lambda: shard(1) in bodies(hub.requests))
        stream.cancel()
    until(lambda: not own_threads())
    assert shard(2) not in bodies(hub.requests)
    hub.clear_requests()
    time.sleep(0.2)
    assert hub.requests == []


def test_cancelled_between_stages_it_stays_there(load, answers) -> None:
    model, pause = load(), Pause(2)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        stream.cancel()
        stream.cancel()
    assert stream.wait(60)
    assert (stream.cancelled, stream.stage, model.stage, answers().stage_now(model)) == (True, 2, 2, 2)
    assert stream.bytes_done < stream.bytes_total
    model.load_next_stage()
    model.stream_stages().wait()
    assert model.stage == 4


def test_cancelled_while_the_hub_is_waited_for_it_ends_at_once(hub, pull) -> None:
    model = pull(retry=RetryPolicy(tries=9, first_wait=3600, max_wait=3600, max_seconds=10**6))
    with hub.faulty(Fault("status", path="/teacher/", times=None, headers={"Retry-After": "3600"})):
        stream = model.stream_stages()
        until(lambda: any(r.fault for r in hub.requests))
        stream.cancel()
        assert stream.wait(60)
        until(lambda: not own_threads())
    assert (stream.cancelled, model.stage) == (True, 0)


def test_cancelled_after_its_end_it_was_not_cancelled(load) -> None:
    stream = load().stream_stages()
    stream.wait()
    stream.cancel()
    assert (stream.cancelled, stream.stage) == (False, 4)


# --- Failed -----------------------------------------------------------------------------------------------------


def test_a_fault_that_lasts_ends_it_with_the_error_and_the_next_goes_on(hub, pull, answers) -> None:
    model = pull(retry=RetryPolicy(tries=2, first_wait=0.01))
    with hub.faulty(Fault("status", path=shard(3), times=None)):
        stream = model.stream_stages()
        assert stream.wait(60)
    assert isinstance(stream.exception, FetchError)
    assert shard(3) in str(stream.exception)
    assert (stream.stage, stream.cancelled, model.stage, answers().stage_now(model)) == (2, False, 2, 2)
    with hub.record() as requests:
        model.stream_stages().wait()
    assert sorted(bodies(requests)) == [shard(3), shard(4)]
    assert answers().stage_now(model) == 4


def test_an_error_of_on_stage_ends_it_and_is_its_exception(load, answers) -> None:
    def on_stage(model: PWLForImageClassification, stage: int) -> None:
        if stage == 2:
            raise KeyError("mine")

    model = load()
    stream = model.stream_stages(on_stage=on_stage)
    assert stream.wait(60)
    assert isinstance(stream.exception, KeyError)
    assert (stream.stage, model.stage, answers().stage_now(model)) == (2, 2, 2)
    model.stream_stages().wait()
    assert model.stage == 4


def test_a_changed_student_ends_it_with_a_stage_error(load) -> None:
    model = load()
    with torch.no_grad():
        next(model.student.parameters()).add_(1)
    stream = model.stream_stages()
    assert stream.wait(60)
    assert isinstance(stream.exception, StageError)
    assert model.stage == 0


def test_a_kept_exception_holds_no_module(load, saved, tmp_path: Path) -> None:
    model = load()

    def on_stage(grown: PWLForImageClassification, stage: int) -> None:
        block = grown.teacher.vit.layers[0]
        held.append(weakref.ref(block))
        raise ValueError("mine")

    held: list[weakref.ref] = []
    stream = model.stream_stages(on_stage=on_stage)
    stream.wait()
    assert stream.exception is not None
    del model
    gc.collect()
    assert held[0]() is None


# --- As a context -----------------------------------------------------------------------------------------------


def test_a_context_waits_for_the_end(load) -> None:
    model = load()
    with model.stream_stages() as stream:
        assert model.stream is stream
    assert (stream.done, model.stage) == (True, 4)


def test_a_context_raises_what_went_wrong(saved, tmp_path: Path) -> None:
    folder = shutil.copytree(saved("vit"), tmp_path / "copy")
    model = PWLForImageClassification.from_pretrained(folder)
    (folder / shard(2)).write_bytes(b"damaged")
    with pytest.raises(RepositoryError, match="model-00002-of-00004"), model.stream_stages():
        pass
    assert model.stage == 1


def test_an_error_inside_a_context_cancels_and_is_raised(load) -> None:
    model, pause = load(), Pause()

    def fail() -> None:
        pause.reached()
        threading.Timer(0.05, pause.let_go).start()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.stream_stages(on_stage=pause):
        fail()
    stream = model.stream
    assert (stream.done, stream.cancelled, model.stage) == (True, True, 1)


# --- Afterwards -------------------------------------------------------------------------------------------------


def test_streams_follow_one_another_up_and_down(load, answers) -> None:
    model = load("resnet")
    for top, bottom in ((4, 0), (2, 1), (3, 2), (4, 3), ("teacher", 0)):
        model.stream_stages(top).wait()
        assert answers("resnet").stage_now(model) == (4 if top == "teacher" else top)
        model.set_stage(bottom)
        assert answers("resnet").stage_now(model) == bottom


def test_no_thread_is_left(load) -> None:
    model = load()
    before = threading.active_count()
    for _ in range(5):
        model.stream_stages().wait()
        model.set_stage(0)
    until(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("keep_handle", [False, True])
def test_a_model_that_nobody_holds_dies_after_its_stream(load, keep_handle: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        model = load()
        stream = model.stream_stages()
        stream.wait()
        until(lambda: not own_threads())
        gone = [weakref.ref(model), *map(weakref.ref, model.parameters())]
        if not keep_handle:
            del stream
        del model
        assert not [r() for r in gone if r() is not None]
    finally:
        gc.enable()


def test_a_process_that_ends_amid_a_stream_ends_cleanly(hub, pull, repo_id, fresh_env) -> None:
    pull()
    code = (
        "import sys, time\nfrom pwl_hf import PWLForImageClassification\n"
        "model = PWLForImageClassification.from_pretrained(sys.argv[1], stream=True, cache_dir=sys.argv[2])\n"
        "while model.stage < 1: time.sleep(0.01)\n"
        "print(model.stage < 4, model.stream.done)"
    )
    # The stream waits for a byte then, and the process for the stream.
    hub.faults.append(Fault("stall", shard(2), after=1000, seconds=3600, times=None))
    command = [sys.executable, "-c", code, repo_id, fresh_env["HF_HOME"] + "/own"]
    env = {**os.environ, **fresh_env, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "False"]), done.stderr[-2000:]
    assert "Error" not in done.stderr
