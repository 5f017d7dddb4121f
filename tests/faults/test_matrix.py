"""Every kind of fault on every kind of file: one that passes is not noticed, one that lasts is explained."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from pwl_hf import FetchError, PWLForImageClassification, RepositoryError
from tests.hub import Fault, HubServer, Request
from tests.repository.helpers import INDEX, STUDENT, encoder, load, logits, shard, statistics
from tests.slow import covering

pytestmark = pytest.mark.usefixtures("unhurried_client")

# What a first load needs, and what stage 1 adds.
FIRST = ["config.json", INDEX, STUDENT]
LATER = [shard(1), encoder(1), statistics("TSSS")]

# Name -> the fault of a GET, and what the error says of its cause.
FAULTS: dict[str, tuple[Fault, str]] = {
    "one corrupted byte": (Fault("corrupt"), "sha256|ETag"),
    "reset": (Fault("reset", after=10), "ReadError"),
    "reset before the answer": (Fault("reset"), "ReadError|RemoteProtocolError"),
    "close": (Fault("close", after=10), "RemoteProtocolError"),
    "500": (Fault("status", status=500), "500 "),
    "503": (Fault("status", status=503), "503 "),
    "429": (Fault("status", status=429, headers={"Retry-After": "0"}), "429 "),
    "truncation": (Fault("truncate", after=10), "Consistency check failed"),
    "stall": (Fault("stall", seconds=0.6), "ReadTimeout"),
    "stall in the middle": (Fault("stall", after=10, seconds=0.6), "ReadTimeout"),
}
# Of a HEAD, which has no body.
OF_HEAD = ["reset before the answer", "500", "503", "429", "stall"]
CASES = [("GET", kind) for kind in FAULTS] + [("HEAD", kind) for kind in OF_HEAD]


@pytest.fixture
def struck(hub: HubServer, pushed: str, request: pytest.FixtureRequest):
    """Put a fault on a file, for a number of requests."""
    return strike_on(hub, request)


def strike_on(hub: HubServer, request: pytest.FixtureRequest):
    def strike(method: str, kind: str, path: str, times: int | None) -> None:
        fault, _ = FAULTS[kind]
        if fault.kind == "stall":
            request.getfixturevalue("short_timeouts")
        hub.faults.append(replace(fault, path=f"/resolve/.*{re.escape(path)}$", method=method, times=times))

    return strike


def arrived(requests: list[Request]) -> set[str]:
    """Files that came whole."""
    return {r.file for r in requests if r.file and r.method == "GET" and r.status == 200 and r.fault is None}


def cached(model) -> set[str]:
    """Files of weights that are in the cache."""
    store = model.parts.store
    return {entry.path for entry in store.manifest.files if store.repository.local(entry.path) is not None}


def explains(error: Exception, hub: HubServer, repo_id: str, path: str, kind: str) -> None:
    text = str(error)
    assert f"{repo_id}@{hub.store.head(repo_id)}" in text
    assert f"'{path}'" in text
    assert re.search(FAULTS[kind][1], text), text
    assert "call again later" in text


def is_at(model: PWLForImageClassification, stage: int, answers: list[torch.Tensor]) -> None:
    assert model.stage == stage
    assert torch.equal(logits(model), answers[stage])


@pytest.mark.parametrize(("method", "kind", "path"), covering(CASES, [*FIRST, *LATER]))
def test_fault_that_passes_leaves_the_exact_answers(hub, pushed, struck, cache, answers, quick, method, kind, path):
    struck(method, kind, path, times=1)
    with hub.record() as requests:
        model = load(pushed, cache_dir=cache, retry=quick)
        is_at(model, 0, answers)
        model.load_next_stage()
        is_at(model, 1, answers)
    assert [r.file for r in requests if r.fault] == [path]


@pytest.mark.parametrize(("method", "kind", "path"), covering(CASES, FIRST))
def test_lasting_fault_of_a_first_file_is_explained_and_a_later_call_goes_on(
    hub, pushed, struck, cache, answers, quick, method, kind, path
):
    struck(method, kind, path, times=None)
    with hub.record() as before, pytest.raises((FetchError, RepositoryError)) as failed:
        load(pushed, cache_dir=cache, retry=quick)
    explains(failed.value, hub, pushed, path, kind)
    hub.faults.clear()
    with hub.record() as after:
        is_at(load(pushed, cache_dir=cache, retry=quick), 0, answers)
    assert path in arrived(after)
    assert not arrived(before) & arrived(after)


@pytest.mark.parametrize(("method", "kind", "path"), covering(CASES, LATER))
def test_lasting_fault_of_a_later_file_leaves_the_model_and_a_later_call_goes_on(
    hub, pushed, struck, cache, answers, quick, method, kind, path
):
    model = load(pushed, cache_dir=cache, retry=quick)
    names, had = list(model.state_dict()), cached(model)
    struck(method, kind, path, times=None)
    with hub.record() as before, pytest.raises((FetchError, RepositoryError)) as failed:
        model.load_next_stage()
    explains(failed.value, hub, pushed, path, kind)
    is_at(model, 0, answers)
    assert list(model.state_dict()) == names
    kept = cached(model) - had
    assert kept <= arrived(before)
    hub.faults.clear()
    with hub.record() as after:
        model.load_next_stage()
    is_at(model, 1, answers)
    assert path in arrived(after)
    assert not kept & arrived(after)


@pytest.mark.parametrize("kind", ["reset", "500", "one corrupted byte"])
def test_lasting_fault_ends_a_stream_and_a_new_stream_goes_on(hub, pushed, struck, cache, answers, quick, kind):
    model = load(pushed, cache_dir=cache, retry=quick)
    had = cached(model)
    struck("GET", kind, shard(3), times=None)
    with hub.record() as before:
        stream = model.stream_stages()
        assert stream.wait(60)
    explains(stream.exception, hub, pushed, shard(3), kind)
    is_at(model, 2, answers)
    kept = cached(model) - had
    assert {shard(1), shard(2)} <= kept <= arrived(before)
    hub.faults.clear()
    with hub.record() as after, model.stream_stages():
        pass
    is_at(model, 4, answers)
    assert not kept & arrived(after)


@pytest.mark.parametrize("path", ["config.json", INDEX])
def test_file_that_both_head_and_get_cut_short_is_refused_and_not_kept(hub, pushed, cache, answers, quick, path):
    # The length is right then, as far as the client can see.
    hub.faults.append(Fault("truncate", path=re.escape(path), method="*", times=None, after=100))
    with pytest.raises(RepositoryError, match=f"'{path}' is corrupt"):
        load(pushed, cache_dir=cache, retry=quick)
    hub.faults.clear()
    assert not [blob for blob in cache.rglob("blobs/*") if blob.stat().st_size == 100]
    is_at(load(pushed, cache_dir=cache, retry=quick), 0, answers)


@pytest.mark.parametrize("kind", ["reset before the answer", "500", "503", "429"])
def test_fault_of_the_first_question_that_passes_is_not_noticed(hub, pushed, cache, answers, quick, kind):
    hub.faults.append(replace(FAULTS[kind][0], path=f"/api/models/{pushed}", times=1))
    is_at(load(pushed, cache_dir=cache, retry=quick), 0, answers)
    assert [r.fault for r in hub.requests if r.path.startswith("/api/models")] == [FAULTS[kind][0].kind, None]


@pytest.mark.parametrize("kind", ["reset before the answer", "500", "503", "429"])
def test_lasting_fault_of_the_first_question_is_explained(hub, pushed, cache, quick, kind):
    hub.faults.append(replace(FAULTS[kind][0], path=f"/api/models/{pushed}", times=None))
    with pytest.raises(FetchError, match=f"{pushed}@main: .* call again later") as failed:
        load(pushed, cache_dir=cache, retry=quick)
    assert re.search(FAULTS[kind][1], str(failed.value))
    assert len([r for r in hub.requests if r.fault]) == quick.tries


def test_hub_that_is_down_is_not_missed_where_commit_and_files_are_known(hub, pushed, cache, answers, quick):
    load(pushed, cache_dir=cache, stage=1)
    hub.faults.append(Fault("status", method="*", times=None, status=503))
    model = load(pushed, cache_dir=cache, retry=quick)
    model.load_next_stage()
    is_at(model, 1, answers)
