"""Answers of a Hub, or of a proxy before it, that nobody should believe: names, waits, lengths; and odd caches."""

from __future__ import annotations

import gzip
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pwl_hf import FetchError, RepositoryError, RetryPolicy
from pwl_hf.modeling.publishing.push import Target, push_folder
from pwl_hf.modeling.repository.source import Repository
from tests.hub import Fault
from tests.repository.helpers import INDEX, STUDENT, load, publish, shard, tree


def opened(name: str, cache: Path, **options) -> Repository:
    return Repository.open(name, cache_dir=cache, retry=RetryPolicy(tries=2, first_wait=0, max_wait=0.05), **options)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the cache, which nothing may write to."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


ETAGS = {
    "a path": '"{evil}/x"',
    "a path, weak": 'W/"{evil}/x"',
    "an absolute path": '"{outside}/x"',
    "a name": '"evil"',
    "hex of another length": f'"{"a" * 41}"',
    "md5": f'"{"a" * 32}"',
    "a hash and a path": f'"{"a" * 40}/../../x"',
    "a hash and more": f'"{"a" * 64}.lock"',
    "dots": '".."',
    "nothing": '""',
    "half a quote": f'"{"a" * 40}',
    "a hash after weak twice": f'W/W/"{"a" * 40}"',
    "no hex": f'"{"g" * 40}"',
}


@pytest.mark.parametrize(("path", "header"), [("config.json", "ETag"), (STUDENT, "X-Linked-Etag")])
@pytest.mark.parametrize("kind", ETAGS)
def test_etag_that_is_no_hash_is_refused_and_nothing_is_written(hub, pushed, cache, outside, kind, path, header):
    repository = opened(pushed, cache)
    etag = ETAGS[kind].format(evil=os.path.relpath(outside, cache / "models--a--b" / "blobs"), outside=outside)
    hub.faults.append(Fault("headers", path, method="HEAD", times=None, headers={header: etag}))
    with pytest.raises(FetchError, match="which is no hash of 40 or 64 hex digits"):
        repository.fetch(path)
    assert not list(outside.iterdir())
    assert not [path for path in cache.rglob("*") if path.is_file() and "refs" not in path.parts]


@pytest.mark.parametrize("form", ["{}", '"{}"', 'W/"{}"', "W/{}"])
def test_weak_and_quoted_etags_name_the_same_blob(hub, pushed, saved, cache, form):
    repository, digest = opened(pushed, cache), "ab" * 20
    hub.faults.append(Fault("headers", "config.json", method="HEAD", headers={"ETag": form.format(digest)}))
    local = repository.fetch("config.json")
    assert Path(os.readlink(local)).name == digest


@pytest.mark.parametrize("commit", ["../../../../evil", "main", "a" * 39, "A" * 40, "/etc", ""])
@pytest.mark.parametrize("path", [STUDENT, "missing.json"])
def test_commit_that_is_no_hash_is_refused_and_nothing_is_written(hub, pushed, cache, path, commit):
    repository = opened(pushed, cache)
    hub.faults.append(Fault("headers", path, method="HEAD", times=None, headers={"X-Repo-Commit": commit}))
    with pytest.raises(FetchError, match="which is no hash of 40 hex digits"):
        repository.fetch(path)
    assert not [path for path in cache.rglob("*") if path.is_file() and "refs" not in path.parts]


@pytest.mark.parametrize("sha", ["../../../etc", "main", "", "0" * 41])
def test_branch_at_what_is_no_commit_is_refused(pushed, cache, monkeypatch, sha):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: type("Info", (), {"sha": sha})())
    with pytest.raises(RepositoryError, match="which is no hash of 40 hex digits"):
        opened(pushed, cache)


WAITS = {
    "a billion seconds": {"Retry-After": "1000000000"},
    "an hour": {"Retry-After": "3600"},
    "more digits than a number has": {"Retry-After": "9" * 5000},
    "digits that are none": {"Retry-After": "\N{SUPERSCRIPT TWO}"},
    "a rate limit": {"ratelimit": '"api";r=0;t=1000000000'},
    "a date that cannot be": {"Retry-After": "Wed, 21 Oct 999999999 07:28:00 GMT"},
}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client slept, or would have: these take no time."""
    found: list[float] = []
    clock = SimpleNamespace(**{name: getattr(time, name) for name in ("time", "monotonic", "perf_counter")})
    clock.sleep = found.append
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", clock)
    return found


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [408, 429, 503])
@pytest.mark.parametrize("kind", WAITS)
def test_wait_that_the_hub_asks_for_is_never_slept_inside_the_client(hub, pushed, cache, slept, status, kind, method):
    repository = opened(pushed, cache)
    headers = {name: value.encode("ascii", "replace").decode() for name, value in WAITS[kind].items()}
    hub.faults.append(Fault("status", STUDENT, method=method, status=status, headers=headers, times=None))
    with pytest.raises(FetchError, match="failed in every try"):
        repository.fetch(STUDENT)
    assert slept == []


def test_wait_that_the_hub_asks_for_ends_when_the_download_is_cancelled(hub, pushed, cache):
    repository = Repository.open(pushed, cache_dir=cache, retry=RetryPolicy(max_wait=10**6, max_seconds=10**9))
    hub.faults.append(Fault("status", STUDENT, status=429, headers={"Retry-After": "1000000"}, times=None))
    cancelled = threading.Event()
    threading.Timer(0.2, cancelled.set).start()
    with pytest.raises(FetchError):
        repository.fetch(STUDENT, cancelled=cancelled)
    assert [request.fault for request in hub.requests].count("status") == 1


@pytest.mark.parametrize(("method", "path"), [("PUT", ""), ("POST", "commit"), ("POST", "lfs"), ("GET", "/api/")])
def test_wait_that_the_hub_asks_for_is_not_slept_while_pushing(hub, repo_id, saved, slept, method, path):
    headers = {"Retry-After": "1000000000"}
    hub.faults.append(Fault("status", path, method=method, status=429, headers=headers, times=2))
    push_folder(saved, Target(repo_id, retry=RetryPolicy(tries=5, first_wait=0, max_wait=0.05)))
    assert max(slept, default=0) < 60
    assert Repository.open(repo_id).manifest().num_blocks == 4


LARGE = 30_000_000


def sent(hub) -> int:
    return sum(request.sent for request in hub.requests if request.method == "GET")


@pytest.mark.parametrize("stage", [0, 1])
def test_body_longer_than_the_manifest_says_is_not_received(hub, pushed, cache, stage):
    path = STUDENT if stage == 0 else shard(1)
    hub.store.commit(pushed, {path: bytes(LARGE)})
    model = load(pushed, cache_dir=cache) if stage else None
    hub.requests.clear()
    with pytest.raises(RepositoryError, match=rf"'{path}' was not received: it is longer than \d+ bytes"):
        model.load_next_stage() if model else load(pushed, cache_dir=cache)
    assert sent(hub) < LARGE / 10
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < LARGE / 10


def test_body_longer_than_the_manifest_says_ends_a_stream(hub, pushed, cache):
    hub.store.commit(pushed, {shard(1): bytes(LARGE)})
    model = load(pushed, cache_dir=cache)
    hub.requests.clear()
    stream = model.stream_stages()
    assert stream.wait(60)
    assert "was not received" in str(stream.exception)
    assert model.stage == 0
    assert sent(hub) < LARGE / 10


@pytest.mark.parametrize("lie", ["the right length", "no length", "compressed"])
def test_body_that_turns_out_longer_is_cut_off(hub, pushed, saved, cache, monkeypatch, lie):
    repository = opened(pushed, cache)
    entry = repository.manifest().get(STUDENT)
    content = bytes(LARGE)
    body = gzip.compress(content) if lie == "compressed" else content
    publish(hub, pushed, saved)
    hub.store.commit(pushed, {STUDENT: body})
    repository = opened(pushed, cache)
    declared = {"X-Linked-Size": str(entry.bytes) if lie == "the right length" else "", "Content-Length": "0"}
    hub.faults.append(Fault("headers", STUDENT, method="HEAD", times=None, headers=declared))
    if lie == "compressed":
        hub.faults.append(Fault("headers", STUDENT, times=None, headers={"Content-Encoding": "gzip"}))
    with pytest.raises(RepositoryError, match=r"was not received|another commit"):
        repository.fetch_verified([entry])
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < LARGE / 10


def test_manifest_longer_than_any_is_not_received(hub, pushed, cache, monkeypatch):
    monkeypatch.setattr("pwl_hf.modeling.repository.source.MAX_TEXT_BYTES", 100)
    with pytest.raises(RepositoryError, match=f"'{INDEX}' was not received: it is longer than 100 bytes"):
        load(pushed, cache_dir=cache)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def empty_folder(path: Path) -> None:
    path.mkdir()


def folder(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("")


PLACES: dict[str, Callable[[Path], None]] = {"fifo": fifo, "empty folder": empty_folder, "folder": folder}


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("path", [STUDENT, INDEX, "config.json"])
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file_in_the_cache_is_replaced_or_named(pushed, cache, kind, path, linked, offline):
    local = opened(pushed, cache)
    load(pushed, cache_dir=cache)
    pointer = local.fetch(path)
    place = pointer.resolve() if linked else pointer
    place.unlink()
    PLACES[kind](place)
    if offline or kind == "folder":
        with pytest.raises((RepositoryError, FetchError)) as caught:
            load(pushed, cache_dir=cache, local_files_only=offline)
        assert path in str(caught.value)
        assert str(place) in str(caught.value)
    else:
        assert load(pushed, cache_dir=cache).stage == 0
        assert place.is_file()


@pytest.mark.parametrize("path", [STUDENT, INDEX, "config.json"])
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file_in_a_folder_is_refused_by_name(saved, tmp_path, kind, path):
    copy = tmp_path / "copy"
    for name, content in tree(saved).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    (copy / path).unlink()
    PLACES[kind](copy / path)
    with pytest.raises(RepositoryError, match=path):
        load(copy)
