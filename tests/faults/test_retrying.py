"""How often and how long is tried again. No test here sleeps: the clock is a fake."""

from __future__ import annotations

import errno
import random
import threading
from email.utils import formatdate
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionResolutionError,
)

from pwl_hf import FetchError, RepositoryError, RetryPolicy
from pwl_hf.modeling.repository.retrying import is_passing

NOW = 1_700_000_000.0
REQUEST = httpx2.Request("GET", "http://127.0.0.1/file")


def answer(status: int, kind: type = HfHubHTTPError, **headers: str) -> HfHubHTTPError:
    response = httpx2.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()}, request=REQUEST)
    return kind(f"{status}", response=response)


def because(error: Exception, cause: Exception | None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture
def slept(monkeypatch):
    """The waits so far; the clock moves by them alone."""
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, monotonic=lambda: sum(waits), time=lambda: NOW)
    monkeypatch.setattr("pwl_hf.modeling.repository.retrying.time", clock)
    return waits


class Attempt:
    """Fails so many times, then succeeds."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures, self.calls, self.error = failures, 0, error or answer(503)

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


class Event(threading.Event):
    """Notes how long it was waited for; set during the `at`-th wait."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self.at = at

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return len(self.waits) >= self.at


PASSING = {
    **{f"status {status}": answer(status) for status in (408, 425, 429, 500, 502, 503, 504, 522)},
    "reset": httpx2.ReadError("reset"),
    "closed early": httpx2.RemoteProtocolError("closed"),
    "refused": httpx2.ConnectError("refused"),
    "no answer in time": httpx2.ReadTimeout("stalled"),
    "wrong length": OSError("Consistency check failed"),
    "reset by the system": ConnectionResetError(errno.ECONNRESET, "reset"),
    "5xx to a HEAD": because(LocalEntryNotFoundError("not cached"), answer(503)),
    "5xx to the first question": because(RevisionResolutionError("no commit"), answer(500)),
    "reset of the first question": because(RevisionResolutionError("no commit"), httpx2.ReadError("reset")),
}
LASTING = {
    **{f"status {status}": answer(status) for status in (400, 401, 403, 404, 409, 412, 416, 422)},
    "gated": answer(403, GatedRepoError),
    "deleted": answer(404, RepositoryNotFoundError),
    "no such file": answer(404, RemoteEntryNotFoundError),
    "plain 404": httpx2.HTTPStatusError("404", request=REQUEST, response=httpx2.Response(404, request=REQUEST)),
    "offline": OfflineModeIsEnabled("offline"),
    "offline, wrapped": because(LocalEntryNotFoundError("not cached"), OfflineModeIsEnabled("offline")),
    "offline, first question": because(RevisionResolutionError("no commit"), OfflineModeIsEnabled("offline")),
    "local files only": LocalEntryNotFoundError("local_files_only"),
    "403 to a HEAD": because(LocalEntryNotFoundError("not cached"), answer(403)),
    "no token": LocalTokenNotFoundError("log in"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "file size limit": OSError(errno.EFBIG, "File too large"),
    "read-only": OSError(errno.EROFS, "Read-only file system"),
    "not allowed": PermissionError(errno.EACCES, "Permission denied"),
    "Xet refuses the token": PermissionError("denied"),
    "no such id": HFValidationError("bad id"),
    "a malformed address": httpx2.UnsupportedProtocol("ftp"),
    "tried already": FetchError("after all tries"),
    "not to be trusted": RepositoryError("corrupt"),
    "a mistake in the code": TypeError("oops"),
}


@pytest.mark.parametrize("name", PASSING)
def test_fault_that_may_pass_is_tried_again(name, slept):
    attempt = Attempt(1, PASSING[name])
    assert is_passing(PASSING[name])
    assert RetryPolicy().run(attempt) == "done"
    assert attempt.calls == 2


@pytest.mark.parametrize("name", LASTING)
def test_fault_that_will_last_is_raised_at_once(name, slept):
    attempt = Attempt(1, LASTING[name])
    with pytest.raises(type(LASTING[name])):
        RetryPolicy().run(attempt)
    assert attempt.calls == 1
    assert slept == []


def test_tries_are_bounded_and_the_last_error_is_raised(slept):
    attempt = Attempt(99)
    with pytest.raises(HfHubHTTPError, match="503"):
        RetryPolicy(tries=4).run(attempt)
    assert attempt.calls == 4
    assert len(slept) == 3


def test_one_try_never_waits(slept):
    with pytest.raises(HfHubHTTPError):
        RetryPolicy(tries=1).run(Attempt(1))
    assert slept == []


def test_back_off_doubles_up_to_its_bound_with_full_jitter(monkeypatch):
    policy = RetryPolicy(first_wait=0.5, max_wait=4.0)
    waits = {count: [policy.wait_after(answer(503), count) for _ in range(400)] for count in range(1, 8)}
    for count, found in waits.items():
        bound = min(0.5 * 2 ** (count - 1), 4.0)
        assert 0 <= min(found) < 0.1 * bound, count
        assert 0.9 * bound < max(found) <= bound, count


def test_wait_after_thousands_of_tries_is_the_longest():
    policy = RetryPolicy(tries=10**6, max_wait=3.0)
    assert max(policy.wait_after(answer(503), 5000) for _ in range(400)) <= 3.0


def test_jitter_leaves_the_processes_generator_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    RetryPolicy().wait_after(answer(503), 1)
    assert random.random() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("1e9", 60.0),
        ("inf", 60.0),
        (formatdate(NOW + 12, usegmt=True), 12.0),
        (formatdate(NOW - 12, usegmt=True), 0.0),
    ],
)
def test_retry_after_is_obeyed_up_to_the_longest_wait(slept, value, expected):
    for error in (
        answer(429, Retry_After=value),
        because(LocalEntryNotFoundError("x"), answer(429, Retry_After=value)),
    ):
        assert RetryPolicy(max_wait=60.0).wait_after(error, 1) == expected


@pytest.mark.parametrize("value", ["soon", "", "nan", "Wed, 99 Foo 2015"])
def test_retry_after_that_says_nothing_leaves_a_bounded_wait(slept, value):
    assert 0 <= RetryPolicy(first_wait=0.5).wait_after(answer(429, Retry_After=value), 1) <= 0.5


def test_no_try_begins_after_the_time_is_up(slept):
    attempt = Attempt(99, answer(503, Retry_After="4"))
    with pytest.raises(HfHubHTTPError):
        RetryPolicy(tries=99, max_seconds=10.0).run(attempt)
    assert slept == [4.0, 4.0]
    assert attempt.calls == 3


def test_cancelling_ends_the_wait_with_the_last_error(slept):
    attempt, cancelled = Attempt(99), Event(at=2)
    with pytest.raises(HfHubHTTPError, match="503"):
        RetryPolicy(tries=99).run(attempt, cancelled)
    assert attempt.calls == 2
    assert len(cancelled.waits) == 2
    assert slept == []


def test_event_that_is_never_set_lets_all_tries_happen(slept):
    attempt = Attempt(3)
    assert RetryPolicy().run(attempt, Event(at=99)) == "done"
    assert attempt.calls == 4


@pytest.mark.parametrize("wrong", [{"tries": 0}, {"max_seconds": -1.0}, {"first_wait": -0.1}, {"max_wait": -1.0}])
def test_impossible_policy_is_refused(wrong):
    with pytest.raises(ValueError, match="at least one try and no negative times"):
        RetryPolicy(**wrong)
