"""Copies, pickles and forked processes: the same stage, no stream, and sessions of their own."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest

from pwl_hf import StageError
from tests.runtime.helpers import NUM_STAGES
from tests.streaming.helpers import Pause
from tests.streaming.test_children import forking, in_fork

LAST = NUM_STAGES
WAYS = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("way", WAYS)
def test_copy_of_a_streaming_model_has_its_stage_and_no_stream(load, expected, way):
    model, pause = load(), Pause(2)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        other = WAYS[way](model)
        assert (expected().stage_now(other), other.stage, other.stream) == (2, 2, None)
        with other.stream_stages():
            pass
        other.set_stage(1)
        assert (expected().stage_now(other), expected().stage_now(model)) == (1, 2)
    assert stream.wait(60)
    assert expected().stage_now(model) == LAST


def test_pickle_holds_no_weights_and_no_token(hub, repo_id, exported, tmp_path):
    from pwl_hf import runtime
    from tests.repository.helpers import publish

    publish(hub, repo_id, exported())
    model = runtime.load(repo_id, token="hf_tester", cache_dir=tmp_path / "cache", threads=1)
    pickled = pickle.dumps(model)
    assert b"hf_tester" not in pickled
    assert len(pickled) < 50_000
    assert copy.deepcopy(model)._graphs.repository.token == "hf_tester"


@forking
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_child_has_the_stage_and_no_stream_and_grows(load, expected, threads):
    model, pause, known = load(threads=threads), Pause(1), expected()
    model.logits(pixel_values=known.pixels)

    def child() -> tuple:
        found = (known.stage_now(model), model.stage, model.stream)
        with model.stream_stages(2):
            pass
        model.load_next_stage()
        last = known.stage_now(model)
        model.set_stage(0)
        return (*found, last, known.stage_now(model))

    stream = model.stream_stages(on_stage=pause)
    with pause:
        assert in_fork(child) == (1, 1, None, LAST, 0)
        with pytest.raises(StageError):
            model.load_next_stage()
    assert stream.wait(60)
    assert known.stage_now(model) == LAST


@forking
def test_child_forked_while_the_stage_changes_has_the_lock_free(load, expected):
    model, held, free = load(), threading.Event(), threading.Event()

    def hold() -> None:
        with model._lock:
            held.set()
            assert free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    try:
        assert in_fork(lambda: (model.load_next_stage(), expected().stage_now(model))) == (1, 1)
    finally:
        free.set()
        thread.join()


@forking
def test_forked_child_may_let_go_of_the_model(load):
    """The end of a session waits for its threads, and those of the parent's are not there."""
    models = [load(threads=2)]

    def child() -> str:
        models.clear()
        gc.collect()
        return "gone"

    assert in_fork(child) == "gone"
