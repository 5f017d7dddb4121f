"""The store of results."""

from __future__ import annotations

import threading

import pytest

from benchmarks.store import Store, StoreError


def test_store_keeps_what_others_added_meanwhile(tmp_path):
    path = tmp_path / "store.json"
    threads = [threading.Thread(target=Store(path).add, args=("runs", f"run-{i}", {"seed": i})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry["seed"] for entry in Store(path).read("runs").values()} == set(range(16))
    assert len([line for line in path.read_text().splitlines() if "run-" in line]) == 16


def test_store_that_is_none_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "store.json"
    for text, message in [("{", "is not JSON"), ("[]", "no store"), ('{"version": 9}', "found 9")]:
        path.write_text(text)
        with pytest.raises(StoreError, match=message):
            Store(path).add("runs", "key", {})
        assert path.read_text() == text


def test_store_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    store = Store(tmp_path / "store.json")
    store.add("runs", "a", {"seed": 0})
    with pytest.raises(TypeError):
        store.add("runs", "b", {"seed": object()})
    assert list(store.read("runs")) == ["a"]
