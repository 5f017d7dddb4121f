"""How the stream uses the network: one thing after the other, ahead of what is attached, within its limits."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path

import pytest

from tests.hub import Fault, HubServer
from tests.repository.helpers import bodies, encoder, shard
from tests.streaming.helpers import Pause, until

NEW = {1: {encoder(1), shard(1)}, 2: {encoder(2), shard(2)}, 3: {encoder(3), shard(3)}, 4: {shard(4)}}


def size_of(folder: Path, *stages: int) -> int:
    return sum((folder / path).stat().st_size for stage in stages for path in NEW[stage])


def asked(hub: HubServer) -> set[str]:
    return {r.file for r in hub.requests if r.file and r.method == "GET"} & set().union(*NEW.values())


def settled(hub: HubServer, expected: set[str]) -> set[str]:
    """What was asked for some time after all that is expected was."""
    until(lambda: asked(hub) >= expected)
    time.sleep(0.3)
    return asked(hub)


def test_files_come_stage_by_stage_and_each_once(hub, pull) -> None:
    model = pull()
    hub.clear_requests()
    model.stream_stages().wait()
    found = bodies(hub.requests)
    assert len(found) == 7
    for stage in (1, 2, 3, 4):
        taken, found = found[: len(NEW[stage])], found[len(NEW[stage]) :]
        assert set(taken) == NEW[stage]


def test_small_files_come_beside_large_ones(hub, pull) -> None:
    hub.faults.append(Fault("stall", shard(1), seconds=3600, times=None))
    model = pull()
    stream = model.stream_stages(1)
    # A stalled shard is not waited for.
    until(lambda: shard(1) in asked(hub) and model.parts.store.repository.local(encoder(1)) is not None)
    assert not stream.done
    stream.cancel()
    assert stream.wait(60)


def test_files_come_once_also_with_force_download(hub, pull) -> None:
    pull().stream_stages().wait()
    model = pull(force_download=True)
    hub.clear_requests()
    model.stream_stages().wait()
    assert model.stage == 4
    assert sorted(bodies(hub.requests)) == sorted(set().union(*NEW.values()))


def test_the_next_stage_is_fetched_while_one_is_attached(hub, pull) -> None:
    model, pause = pull(), Pause(1)
    stream = model.stream_stages(on_stage=pause)
    with pause:
        until(lambda: asked(hub) >= NEW[2])
        assert (stream.stage, model.stage) == (1, 1)
    stream.wait()


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [((), {1}), ((2,), {1, 2}), ((2, 3), {1, 2, 3}), ((2, 3, 4), {1, 2, 3, 4})],
    ids=["none", "one", "two", "all"],
)
def test_the_look_ahead_is_bounded_in_bytes(hub, pull, saved, ahead: tuple[int, ...], expected: set[int]) -> None:
    model = pull()
    hub.clear_requests()
    # Stopped where stage 1 is being attached: a forward pass of the warm-up cannot run on.
    held, free = threading.Event(), threading.Event()
    plain = model._advance

    def advance(stage: int) -> None:
        held.set()
        assert free.wait(60)
        plain(stage)

    model._advance = advance
    stream = model.stream_stages(lookahead_bytes=size_of(saved("vit"), *ahead))
    assert held.wait(60)
    files = set().union(*(NEW[stage] for stage in expected))
    assert settled(hub, files) == files
    free.set()
    assert stream.wait(60)
    assert (stream.exception, model.stage, asked(hub)) == (None, 4, set().union(*NEW.values()))


def test_a_stage_larger_than_the_look_ahead_is_fetched_one_ahead(hub, pull) -> None:
    model, pause = pull(), Pause(1)
    hub.clear_requests()
    stream = model.stream_stages(lookahead_bytes=1, on_stage=pause)
    with pause:
        assert settled(hub, NEW[1] | NEW[2]) == NEW[1] | NEW[2]
    stream.wait()
    assert (stream.exception, model.stage) == (None, 4)


def test_the_bandwidth_limit_holds_on_average(hub, pull, saved) -> None:
    model, total = pull(), size_of(saved("vit"), 1, 2, 3, 4)
    started = time.monotonic()
    stream = model.stream_stages(max_bytes_per_second=total / 0.5)
    stream.wait()
    assert time.monotonic() - started >= 0.5
    assert (stream.exception, stream.bytes_total) == (None, total)


def test_what_is_cached_is_not_held_back(pull) -> None:
    pull().stream_stages().wait()
    model = pull()
    # It would take days.
    stream = model.stream_stages(max_bytes_per_second=1)
    assert stream.wait(60)
    assert model.stage == 4


def test_a_limited_stream_is_cancelled(hub, pull) -> None:
    model = pull()
    stream = model.stream_stages(max_bytes_per_second=1)
    until(lambda: shard(1) in bodies(hub.requests))
    stream.cancel()
    assert stream.wait(60)
    assert (stream.cancelled, model.stage) == (True, 0)


@pytest.mark.parametrize("disabled", [True, False])
def test_the_progress_bar_is_the_hubs_and_is_switched_off_with_it(
    hub, pull, monkeypatch, capfd, disabled: bool
) -> None:
    # Not by attribute: a class of the same name stands before the module.
    hub_tqdm = importlib.import_module("huggingface_hub.utils.tqdm")
    model = pull()
    capfd.readouterr()
    monkeypatch.setattr(hub_tqdm, "HF_HUB_DISABLE_PROGRESS_BARS", disabled)
    # Bars show where there is no terminal either.
    monkeypatch.setenv("TQDM_POSITION", "-1")
    monkeypatch.setattr(hub_tqdm, "progress_bar_states", {} if disabled else {"_global": True})
    model.stream_stages().wait()
    shown = capfd.readouterr().err
    assert model.stage == 4
    assert ("model-00003-of-00004" in shown) is not disabled
