"""`pwl_hf.prefetch`: files are on their way before anything else is imported, once, and nobody is the worse for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pwl_hf
from pwl_hf import FetchError, PWLForImageClassification, RepositoryError, RetryPolicy
from pwl_hf.modeling.repository.limits import Interrupted
from tests.hub import Fault
from tests.repository.helpers import STUDENT, bodies, publish, shard
from tests.streaming.helpers import own_threads, until
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "repo"
    tiny_model("vit").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def load(repo_id, tmp_path, **options):
    return PWLForImageClassification.from_pretrained(repo_id, cache_dir=tmp_path / "cache", **options)


@pytest.mark.parametrize("stage", [0, 2, "teacher"])
def test_what_a_stage_needs_is_there_afterwards(hub, repo_id, saved, tmp_path, stage):
    publish(hub, repo_id, saved)
    handle = pwl_hf.prefetch(repo_id, stage, cache_dir=tmp_path / "cache")
    assert handle.wait(60)
    assert (handle.done, handle.exception) == (True, None)
    with hub.record() as requests:
        load(repo_id, tmp_path, stage=stage, local_files_only=True)
    assert requests == []
    fetched = bodies(hub.requests)
    assert "preprocessor_config.json" in fetched
    assert (STUDENT in fetched, shard(1) in fetched, shard(3) in fetched) == (
        stage != "teacher",
        stage != 0,
        stage == "teacher",
    )


def test_model_that_is_loaded_meanwhile_waits_and_fetches_nothing_twice(hub, repo_id, saved, tmp_path):
    publish(hub, repo_id, saved)
    hub.bandwidth = (saved / STUDENT).stat().st_size / 0.5
    handle = pwl_hf.prefetch(repo_id, cache_dir=tmp_path / "cache")
    model = load(repo_id, tmp_path)
    assert handle.wait(60)
    assert handle.exception is None
    assert model.stage == 0
    found = bodies(hub.requests)
    assert len(found) == len(set(found))
    assert STUDENT in found


def test_handle_need_not_be_kept(hub, repo_id, saved, tmp_path):
    publish(hub, repo_id, saved)
    pwl_hf.prefetch(repo_id, cache_dir=tmp_path / "cache")
    until(lambda: not own_threads())
    load(repo_id, tmp_path, local_files_only=True)


def test_faults_are_told_and_raised_by_who_loads(hub, repo_id, saved, tmp_path):
    publish(hub, repo_id, saved)
    retry = RetryPolicy(tries=1)
    with hub.faulty(Fault("status", path=STUDENT, method="*", status=404, times=None)):
        handle = pwl_hf.prefetch(repo_id, cache_dir=tmp_path / "cache", retry=retry)
        assert handle.wait(60)
        assert isinstance(handle.exception, (FetchError, RepositoryError))
        with pytest.raises((FetchError, RepositoryError), match=STUDENT):
            load(repo_id, tmp_path, retry=retry)
    assert load(repo_id, tmp_path).stage == 0


@pytest.mark.parametrize(
    ("repo", "stage", "error"),
    [("tester/no-such-repository", 0, "RepositoryNotFoundError"), ("nowhere", 0, "RepositoryError")],
)
def test_repository_that_is_none_is_told_by_the_handle(hub, repo, stage, error):
    handle = pwl_hf.prefetch(repo, stage, retry=RetryPolicy(tries=1))
    assert handle.wait(60)
    assert type(handle.exception).__name__ == error


def test_stage_that_does_not_exist_is_told_by_the_handle(hub, repo_id, saved, tmp_path):
    publish(hub, repo_id, saved)
    handle = pwl_hf.prefetch(repo_id, 9, cache_dir=tmp_path / "cache")
    assert handle.wait(60)
    assert "stage must be a whole number from 0 to 4" in str(handle.exception)
    assert STUDENT not in bodies(hub.requests)


def test_cancelled_one_leaves_the_rest_to_who_loads(hub, repo_id, saved, tmp_path):
    publish(hub, repo_id, saved)
    hub.bandwidth = (saved / STUDENT).stat().st_size / 2
    handle = pwl_hf.prefetch(repo_id, cache_dir=tmp_path / "cache")
    until(lambda: STUDENT in bodies(hub.requests))
    handle.cancel()
    assert handle.wait(60)
    assert isinstance(handle.exception, Interrupted)
    hub.bandwidth = None
    assert load(repo_id, tmp_path).stage == 0


def test_folder_is_only_compared_with_its_hashes(saved):
    handle = pwl_hf.prefetch(saved)
    assert handle.wait(60)
    assert handle.exception is None


def test_nothing_heavy_is_imported_and_the_process_ends_while_it_runs(hub, repo_id, saved, fresh_env):
    publish(hub, repo_id, saved)
    hub.faults.append(Fault("stall", STUDENT, after=1000, seconds=3600, times=None))
    code = """
import json, sys, time
import pwl_hf
from pwl_hf.modeling.repository import background
background._JOIN_TIMEOUT = 0.1
handle = pwl_hf.prefetch(sys.argv[1])
print(json.dumps([sorted({"torch", "transformers", "numpy", "safetensors"} & set(sys.modules)), handle.done]))
time.sleep(1)
"""
    env = {**fresh_env, "HF_HUB_DOWNLOAD_TIMEOUT": "3600"}
    done = subprocess.run([sys.executable, "-c", code, repo_id], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [[], False]
