"""Pushes over a failing network: one new commit that holds the right files, or an error that says what to do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pwl_hf import PublishError, PWLForImageClassification, RetryPolicy
from tests.hub import Fault, HubServer
from tests.repository.helpers import contents, load, logits
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("unhurried_client")

FAST = RetryPolicy(tries=3, first_wait=0.001, max_wait=0.01)

# What a push asks of the Hub, in order.
STEPS: dict[str, tuple[str, str]] = {
    "create": ("POST", "/api/repos/create"),
    "tree": ("GET", "/tree/"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/info/lfs/objects/batch"),
    "put": ("PUT", "/lfs/"),
    "commit": ("POST", "/commit/"),
}
# A reset or a close strikes after the request has had its effect: the answer is lost.
KINDS: dict[str, Fault] = {
    "500": Fault("status", status=500),
    "503": Fault("status", status=503),
    "429": Fault("status", status=429, headers={"Retry-After": "0"}),
    "reset": Fault("reset"),
    "close": Fault("close"),
}


@pytest.fixture(scope="module")
def model() -> PWLForImageClassification:
    return tiny_model("vit", num_stages=2)


@pytest.fixture(scope="module")
def expected(model: PWLForImageClassification, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that a save writes, which a push must have sent."""
    folder: Path = tmp_path_factory.mktemp("push") / "repo"
    model.save_pretrained(folder)
    return contents(folder)


def strike(hub: HubServer, step: str, kind: str, times: int | None) -> None:
    method, path = STEPS[step]
    hub.faults.append(replace(KINDS[kind], method=method, path=path, times=times))


def holds(hub: HubServer, repo_id: str, expected: dict[str, bytes], revision: str = "main") -> None:
    files = hub.store.files(repo_id, revision)
    extra = {path for path in files if not path.endswith(".py")} - expected.keys()
    assert {path: files.get(path) for path in expected} == expected
    assert extra == {".gitattributes", "README.md"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", STEPS)
def test_push_over_a_passing_fault_makes_one_commit_of_the_right_files(hub, repo_id, model, expected, step, kind):
    strike(hub, step, kind, times=1)
    with hub.record() as requests:
        pushed = model.push_to_hub(repo_id, retry=FAST)
    assert [r.fault for r in requests if r.fault] == [KINDS[kind].kind]
    assert [commit.oid for commit in hub.store.commits(repo_id)][:-1] == [pushed.oid]
    holds(hub, repo_id, expected)


# Of a reset the request has had its effect: what it sent is there in the next try.
@pytest.mark.parametrize(
    ("step", "kind"), [(step, "500") for step in STEPS] + [(step, "reset") for step in ("create", "tree", "batch")]
)
def test_push_over_a_lasting_fault_says_so_and_a_later_push_goes_on(hub, repo_id, model, expected, step, kind):
    strike(hub, step, kind, times=None)
    with pytest.raises(PublishError, match=f"{repo_id} could not be pushed to: .* call again later") as failed:
        model.push_to_hub(repo_id, retry=FAST)
    assert re.search("500|Error", str(failed.value).split("later")[1])
    sent = {r.path for r in hub.requests if r.method == "PUT" and r.status == 200 and r.fault is None}
    hub.faults.clear()
    with hub.record() as requests:
        model.push_to_hub(repo_id, retry=FAST)
    again = {r.path for r in requests if r.method == "PUT"}
    assert not sent & again
    assert len(hub.store.commits(repo_id)) == 2
    holds(hub, repo_id, expected)


@pytest.mark.parametrize("step", ["put", "commit"])
def test_push_whose_every_answer_is_lost_has_its_effect(hub, repo_id, model, expected, step):
    strike(hub, step, "reset", times=None)
    model.push_to_hub(repo_id, retry=FAST)
    assert len(hub.store.commits(repo_id)) == 2
    holds(hub, repo_id, expected)


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_lost_answer_to_a_commit_that_also_deletes_makes_no_second_one(hub, repo_id, model, expected, kind):
    tiny_model("vit", num_stages=4).push_to_hub(repo_id)
    strike(hub, "commit", kind, times=1)
    pushed = model.push_to_hub(repo_id, retry=FAST)
    assert [commit.oid for commit in hub.store.commits(repo_id)].index(pushed.oid) == 0
    assert len(hub.store.commits(repo_id)) == 3
    holds(hub, repo_id, expected)


def test_faults_at_every_step_of_one_push_are_survived(hub, repo_id, model, expected):
    for step in STEPS:
        strike(hub, step, "503", times=1)
    model.push_to_hub(repo_id, retry=replace(FAST, tries=len(STEPS) + 1))
    assert len(hub.store.commits(repo_id)) == 2
    holds(hub, repo_id, expected)


def test_refusal_is_raised_at_once_and_not_as_a_failing_network(hub, repo_id, model):
    name = repo_id.split("/")[1]
    with hub.record() as requests, pytest.raises(Exception, match="403") as failed:
        model.push_to_hub(f"other-org/{name}", retry=FAST)
    assert not isinstance(failed.value, PublishError)
    assert [r.path for r in requests].count("/api/repos/create") == 1


def test_model_is_the_same_after_a_push_that_failed(hub, pushed, cache, answers, quick):
    loaded = load(pushed, cache_dir=cache, retry=quick, stage=1)
    strike(hub, "commit", "500", times=None)
    with pytest.raises(PublishError):
        loaded.push_to_hub(f"{pushed}-copy", retry=quick)
    assert loaded.stage == 1
    assert torch.equal(logits(loaded), answers[1])


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_push_with_faults_of_a_partly_loaded_model_holds_every_stage(hub, pushed, cache, answers, quick, kind):
    loaded = load(pushed, cache_dir=cache, retry=quick, stage=1)
    copy = f"{pushed}-copy"
    strike(hub, "commit", kind, times=1)
    loaded.push_to_hub(copy, retry=FAST)
    assert len(hub.store.commits(copy)) == 2
    for stage in range(5):
        assert torch.equal(logits(load(copy, cache_dir=cache, stage=stage)), answers[stage])


def test_lost_answer_to_a_pull_request_opens_no_second_one(hub, repo_id, model):
    tiny_model("vit", num_stages=4).push_to_hub(repo_id)
    strike(hub, "commit", "reset", times=1)
    with pytest.raises(PublishError, match=f"{repo_id}: the Hub's answer about the pull request was lost; look there"):
        model.push_to_hub(repo_id, create_pr=True, retry=FAST)
    assert hub.store.get(repo_id).pull_requests() == ["refs/pr/1"]


def test_refused_answer_to_a_pull_request_is_tried_again(hub, repo_id, model, expected):
    tiny_model("vit", num_stages=4).push_to_hub(repo_id)
    strike(hub, "commit", "503", times=1)
    model.push_to_hub(repo_id, create_pr=True, retry=FAST)
    assert hub.store.get(repo_id).pull_requests() == ["refs/pr/1"]
    holds(hub, repo_id, expected, "refs/pr/1")
