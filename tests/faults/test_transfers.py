"""Downloads that are no longer wanted end soon, whatever the network does, and a limit of bandwidth holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import get_session

from pwl_hf import PWLForImageClassification, RepositoryError, RetryPolicy
from pwl_hf.modeling.repository import background, limits
from pwl_hf.modeling.repository.background import Prefetch
from pwl_hf.modeling.repository.limits import SPEND, Interrupted, Pace
from pwl_hf.modeling.repository.source import Repository
from tests.hub import Fault
from tests.repository.helpers import bodies, edit_json, load, publish, shard
from tests.streaming.helpers import own_threads, until

FILE = "large.bin"
SIZE = 2_000_000


@pytest.fixture
def repository(hub, repo_id, cache) -> Repository:
    """A repository of one file that takes a while."""
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {FILE: bytes(SIZE)})
    return Repository.open(repo_id, cache_dir=cache)


@pytest.fixture
def timeout(monkeypatch: pytest.MonkeyPatch) -> float:
    """huggingface_hub waits this long for a byte, in seconds; then it waits a second, and tries again five times."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    return 0.3


def ended_by(hub, fetch: Callable[[threading.Event], object]) -> BaseException | None:
    """Cancel a download when its file has been asked for; how it ended."""
    cancelled, errors = threading.Event(), []

    def run() -> None:
        try:
            fetch(cancelled)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: FILE in bodies(hub.requests))
    cancelled.set()
    thread.join(60)
    assert not thread.is_alive()
    return errors[0] if errors else None


def test_cancelled_over_a_slow_line_it_ends_with_the_next_bytes(hub, repository) -> None:
    hub.bandwidth = SIZE / 20
    error = ended_by(hub, lambda cancelled: repository.fetch(FILE, cancelled=cancelled))
    assert isinstance(error, Interrupted)
    assert sum(request.sent for request in hub.requests if request.file == FILE) < SIZE / 2
    hub.bandwidth = None
    # What came is not taken for the file.
    assert repository.fetch(FILE).stat().st_size == SIZE


def test_cancelled_amid_a_stall_it_ends_when_the_wait_for_a_byte_does(hub, repository, timeout) -> None:
    hub.faults.append(Fault("stall", FILE, after=1000, seconds=3600, times=None))
    error = ended_by(hub, lambda cancelled: repository.fetch(FILE, cancelled=cancelled))
    assert isinstance(error, Interrupted)
    # One time-out, in place of six.
    assert bodies(hub.requests).count(FILE) == 1
    hub.faults.clear()
    # The file's lock is free again.
    assert repository.fetch(FILE).stat().st_size == SIZE


def test_other_downloads_of_the_process_go_on(hub, repository, cache) -> None:
    cancelled = threading.Event()
    cancelled.set()
    for _ in range(3):
        with pytest.raises(Interrupted):
            repository.fetch(FILE, cancelled=cancelled)
    assert Path(hf_hub_download(repository.name, FILE, cache_dir=cache)).stat().st_size == SIZE
    hooks = get_session().event_hooks
    assert len(hooks["response"]) == len(set(hooks["response"])) == 1


# --- A limit of bandwidth ---------------------------------------------------------------------------------------


class Clock(threading.Event):
    """What ends a limit's waits, and the time that it sees: only waiting takes any."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(limits, "time", made)
    return made


def test_a_limit_holds_in_this_thread_and_in_those_it_starts(hub, repository, clock) -> None:
    pace = Pace(SIZE / 3.0, clock)
    with pace.limit(), Prefetch(lambda cancelled: repository.fetch(FILE, cancelled=cancelled)) as fetched:
        assert fetched.result().stat().st_size == SIZE
    assert clock.now == pytest.approx(3.0)


def test_bytes_that_no_hook_saw_are_waited_for_at_the_end_and_others_once(hub, repository, clock) -> None:
    pace = Pace(SIZE / 1.0, clock)
    for unseen in (0, SIZE // 2):
        started = clock.now
        with pace.limit(SIZE + unseen):
            repository.fetch(FILE, force=True)
        assert clock.now - started == pytest.approx(1.0 + unseen / SIZE)


def test_a_limit_above_what_the_network_gives_costs_nothing_and_pauses_earn_nothing(clock) -> None:
    pace = Pace(1000, clock)
    for taken, waited in ((900, 0), (1100, 5 * 0.1)):
        # A pause.
        clock.now += 100
        started = clock.now
        with pace.limit():
            for _ in range(5):
                # The network's own second.
                clock.now += 1
                SPEND.get()(taken)
        assert clock.now - started == pytest.approx(5 + waited)


def test_a_wait_for_the_limit_ends_when_it_is_cancelled(hub, repository) -> None:
    def fetch(cancelled: threading.Event) -> None:
        # It would take days.
        with Pace(1, cancelled).limit():
            repository.fetch(FILE, cancelled=cancelled)

    assert isinstance(ended_by(hub, fetch), Interrupted)


# --- In a stream ------------------------------------------------------------------------------------------------


def test_a_cancelled_stream_leaves_a_stalled_file_to_the_next(hub, pushed, cache, timeout) -> None:
    model = load(pushed, cache_dir=cache)
    with hub.faulty(Fault("stall", shard(1), after=1000, seconds=3600, times=None)):
        stream = model.stream_stages()
        until(lambda: shard(1) in bodies(hub.requests))
        stream.cancel()
        assert stream.wait(60)
        assert stream.cancelled
    with model.stream_stages(1):
        pass
    assert model.stage == 1
    until(lambda: not own_threads())


def test_fetching_a_damaged_file_anew_is_cancelled_too(hub, pushed, cache, timeout) -> None:
    model = load(pushed, cache_dir=cache)
    hub.faults.append(Fault("corrupt", shard(1)))
    hub.faults.append(Fault("stall", shard(1), after=1000, seconds=3600, times=None))
    stream = model.stream_stages()
    until(lambda: bodies(hub.requests).count(shard(1)) == 2)
    stream.cancel()
    assert stream.wait(60)
    assert (stream.cancelled, stream.exception, model.stage) == (True, None, 0)


def test_waiting_to_fetch_a_damaged_file_anew_is_cancelled_at_once(hub, pushed, cache) -> None:
    model = load(pushed, cache_dir=cache, retry=RetryPolicy(max_wait=3600, max_seconds=10**6))
    hub.faults.append(Fault("corrupt", shard(1)))
    hub.faults.append(Fault("status", shard(1), times=None, headers={"Retry-After": "3600"}))
    stream = model.stream_stages()
    until(lambda: any(r.fault == "status" for r in hub.requests))
    stream.cancel()
    assert stream.wait(60)
    assert (stream.cancelled, stream.exception, model.stage) == (True, None, 0)


# --- While a model is built -------------------------------------------------------------------------------------


def test_a_network_that_cannot_be_built_is_refused_without_waiting_for_its_weights(
    hub, repo_id, saved, tmp_path
) -> None:
    publish(hub, repo_id, saved)
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_bytes((saved / "config.json").read_bytes())
    edit_json(config / "config.json", lambda data: data["student_config"].update(hidden_act="no such function"))
    publish(hub, repo_id, config)
    # Weights that were waited for in vain would be the error.
    with (
        hub.faulty(Fault("stall", "model.safetensors", seconds=3600, times=None)),
        pytest.raises(RepositoryError, match="hidden_act 'no such function' is no activation"),
    ):
        load(repo_id, cache_dir=tmp_path / "cache")
    until(lambda: not own_threads())


def test_an_interrupted_load_does_not_wait_for_the_network(hub, pushed, cache, monkeypatch) -> None:
    # A byte is waited for as long as the test lasts.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 600)

    def interrupt(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Prefetch, "result", interrupt)
    with hub.faulty(Fault("stall", "model.safetensors", seconds=3600, times=None)):
        with pytest.raises(KeyboardInterrupt):
            PWLForImageClassification.from_pretrained(pushed, cache_dir=cache)
        assert own_threads()
    until(lambda: not own_threads())


def test_what_the_work_raises_is_raised_by_its_result() -> None:
    with Prefetch(lambda cancelled: 1 // 0) as found, pytest.raises(ZeroDivisionError):
        found.result()
    with Prefetch(lambda cancelled: cancelled.is_set()) as found:
        assert found.result() is False


def test_a_process_that_ends_waits_for_its_threads_but_not_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(background, "_JOIN_TIMEOUT", 0.2)
    free, ended = threading.Event(), threading.Event()
    deaf = threading.Thread(target=free.wait, daemon=True)
    deaf.start()
    started = time.monotonic()
    background._leave(0, ended.set, [deaf])
    assert not ended.is_set(), "the threads of another process are not this one's to end"
    background._leave(background.os.getpid(), ended.set, [deaf])
    assert ended.is_set()
    assert time.monotonic() - started >= 0.2
    assert deaf.is_alive()
    free.set()
