"""Work in two threads that begin at both ends."""

from __future__ import annotations

import threading

import pytest

from pwl_hf.modeling.repository.background import download_concurrently
from tests.streaming.helpers import own_threads, until


def test_each_item_is_done_once_and_has_its_own_result() -> None:
    for count in range(6):
        done: list[int] = []

        def square(item: int, _: threading.Event, done: list[int] = done) -> int:
            done.append(item)
            return item * item

        assert download_concurrently(range(count), square) == {item: item * item for item in range(count)}
        assert sorted(done) == list(range(count))


def test_one_item_needs_no_other_thread() -> None:
    assert download_concurrently(["a"], lambda item, _: threading.current_thread()) == {"a": threading.current_thread()}


def test_the_last_are_done_beside_the_first() -> None:
    small, at_large = threading.Event(), threading.Event()

    def work(item: str, _: threading.Event) -> threading.Thread:
        if item == "large":
            at_large.set()
            assert small.wait(60)
        elif item == "small":
            assert at_large.wait(60)
            small.set()
        return threading.current_thread()

    found = download_concurrently(["large", "small"], work)
    assert found["large"] is threading.current_thread()
    assert found["small"] is not found["large"]


def test_after_a_failure_here_the_other_is_asked_to_end_and_nothing_is_begun() -> None:
    begun: list[str] = []
    was_asked, is_at_last = threading.Event(), threading.Event()

    def work(item: str, ended: threading.Event) -> None:
        begun.append(item)
        if item == "first":
            assert is_at_last.wait(60)
            raise OSError("no more")
        is_at_last.set()
        if ended.wait(60):
            was_asked.set()

    with pytest.raises(OSError, match="no more"):
        download_concurrently(["first", "second", "third", "last"], work)
    assert was_asked.wait(60)
    assert sorted(begun) == ["first", "last"]


def test_a_failure_beside_is_raised_when_the_work_here_is_done() -> None:
    begun: list[str] = []
    at_first = threading.Event()

    def work(item: str, _: threading.Event) -> None:
        begun.append(item)
        if item == "last":
            assert at_first.wait(60)
            raise OSError("no more")
        at_first.set()
        until(lambda: not own_threads())

    with pytest.raises(OSError, match="no more"):
        download_concurrently(["first", "second", "third", "last"], work)
    assert sorted(begun) == ["first", "last"]


def test_where_every_item_fails_it_is_the_first_that_is_named() -> None:
    def work(item: str, _: threading.Event) -> None:
        if item == "first":
            until(lambda: not own_threads())
        raise OSError(item)

    with pytest.raises(OSError, match="first"):
        download_concurrently(["first", "second", "last"], work)
