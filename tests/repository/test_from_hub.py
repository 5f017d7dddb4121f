"""What is asked of the Hub, file by file, and that every file is of one commit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from huggingface_hub.errors import (
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from pwl_hf import FetchError, RepositoryError, RetryPolicy
from tests.hub import Fault, HubServer
from tests.repository.helpers import (
    INDEX,
    STUDENT,
    bodies,
    contents,
    decoder,
    encoder,
    load,
    logits,
    lookups,
    publish,
    shard,
    statistics,
    tree,
)
from tests.tiny import tiny_model

START = ["config.json", STUDENT, INDEX]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub-cache"


@pytest.fixture
def pushed(hub: HubServer, repo_id: str, saved):
    """The ResNet repository on the Hub; its name."""
    publish(hub, repo_id, saved("resnet"))
    return repo_id


def other_weights(tmp_path):
    folder = tmp_path / "other"
    tiny_model("resnet", seed=9).save_pretrained(folder)
    return folder


def test_stage_0_fetches_config_manifest_and_student_and_nothing_else(hub, pushed, saved, cache):
    with hub.record() as requests:
        model = load(pushed, cache_dir=cache)
    assert sorted(bodies(requests)) == START
    assert lookups(requests) == [f"GET /api/models/{pushed}"]
    # A lookup, then HEAD and GET for each file.
    assert sorted((r.method, r.file) for r in requests if r.file) == sorted(
        (method, path) for path in START for method in ("HEAD", "GET")
    )
    assert model.num_parameters() == model.student.num_parameters() == tiny_model("resnet").student.num_parameters()
    assert torch.equal(logits(model), logits(load(saved("resnet"))))


def test_each_stage_fetches_its_own_files_and_stepping_down_none(hub, pushed, saved, cache):
    model, local = load(pushed, cache_dir=cache), load(saved("resnet"))
    expected = {
        1: [encoder(1), statistics("TSSS"), shard(1)],
        2: [encoder(2), statistics("TTSS"), shard(2)],
        3: [encoder(3), statistics("TTTS"), shard(3)],
        4: [shard(4)],
    }
    for k, files in expected.items():
        with hub.record() as requests:
            model.load_next_stage()
        assert sorted(bodies(requests)) == sorted(files), k
        assert lookups(requests) == []
        local.load_next_stage()
        assert torch.equal(logits(model), logits(local))
    with hub.record() as requests:
        for k in (3, 2, 0, 4, 1, 2):
            model.set_stage(k)
    assert requests == []
    assert not any("decoder" in (r.file or "") for r in hub.requests)


def test_a_later_stage_at_once_fetches_the_path_of_that_stage_only(hub, pushed, cache, tmp_path):
    with hub.record() as requests:
        load(pushed, cache_dir=cache, stage=2)
    assert sorted(bodies(requests)) == sorted([*START, encoder(2), statistics("TTSS"), shard(1), shard(2)])
    with hub.record() as requests:
        load(pushed, cache_dir=tmp_path / "second", stage="teacher")
    # The teacher takes no part of the student.
    assert sorted(bodies(requests)) == sorted(["config.json", INDEX, *(shard(k) for k in (1, 2, 3, 4))])


def test_other_masks_fetch_their_decoders_and_statistics(hub, pushed, cache):
    model = load(pushed, cache_dir=cache)
    with hub.record() as requests:
        model.set_sources("STST")
    expected = [shard(2), shard(4), decoder(1), encoder(2), decoder(3), statistics("STST")]
    assert sorted(bodies(requests)) == sorted(expected)


def test_keep_all_fetches_every_weight_file_once(hub, pushed, saved, cache):
    with hub.record() as requests:
        load(pushed, cache_dir=cache, keep_all=True)
    files = [path for path in tree(saved("resnet")) if path.endswith(".safetensors")]
    assert sorted(bodies(requests)) == sorted([*files, "config.json", INDEX])


def test_second_load_downloads_nothing(hub, pushed, cache):
    first = load(pushed, cache_dir=cache, stage=3)
    with hub.record() as requests:
        second = load(pushed, cache_dir=cache, stage=3)
    assert bodies(requests) == []
    assert [r for r in requests if r.file] == []
    assert lookups(requests) == [f"GET /api/models/{pushed}"]
    assert torch.equal(logits(first), logits(second))


def test_pinned_commit_that_is_cached_asks_nothing(hub, pushed, cache):
    commit = hub.store.head(pushed)
    load(pushed, cache_dir=cache, revision=commit, stage=1)
    with hub.record() as requests:
        load(pushed, cache_dir=cache, revision=commit, stage=1)
    assert requests == []


def test_branch_that_moved_between_stages_gives_no_file_of_the_new_commit(hub, pushed, saved, cache, tmp_path):
    model = load(pushed, cache_dir=cache)
    commit = hub.store.head(pushed)
    publish(hub, pushed, other_weights(tmp_path))
    with hub.record() as requests:
        model.load_next_stage()
        model.set_stage("teacher")
    assert {r.path.split("/resolve/")[1].split("/")[0] for r in requests} == {commit}
    assert torch.equal(logits(model), logits(load(saved("resnet"), stage="teacher")))
    model.set_stage(0)
    assert torch.equal(logits(model), logits(load(saved("resnet"))))
    # A new load sees the new weights.
    assert torch.equal(logits(load(pushed, cache_dir=cache)), logits(tiny_model("resnet", seed=9)))


def test_commit_pulled_away_by_a_smaller_layout_still_serves_the_old_model(hub, pushed, saved, cache, tmp_path):
    model = load(pushed, cache_dir=cache)
    tiny_model("resnet", num_stages=2).save_pretrained(tmp_path / "two")
    old = [path for path in tree(saved("resnet")) if path.endswith(".safetensors")]
    hub.store.commit(pushed, tree(tmp_path / "two"), deletions=[path for path in old if path != STUDENT])
    model.set_stage("teacher")
    assert torch.equal(logits(model), logits(load(saved("resnet"), stage="teacher")))
    assert load(pushed, cache_dir=cache).num_stages == 2


def test_revision_may_be_a_branch_a_tag_or_a_commit(hub, pushed, saved, cache, tmp_path):
    repo = hub.store.get(pushed)
    old = hub.store.head(pushed)
    repo.set_ref("refs/tags/v1", old)
    repo.set_ref("refs/heads/next", old)
    publish(hub, pushed, other_weights(tmp_path), branch="next")
    expected, other = logits(load(saved("resnet"), stage=1)), logits(load(tmp_path / "other", stage=1))
    for revision in ("main", "v1", old, None):
        assert torch.equal(logits(load(pushed, cache_dir=cache, revision=revision, stage=1)), expected), revision
    for revision in ("next", hub.store.head(pushed, "next")):
        assert torch.equal(logits(load(pushed, cache_dir=cache, revision=revision, stage=1)), other), revision
    with pytest.raises(RevisionNotFoundError):
        load(pushed, cache_dir=cache, revision="nowhere")


def test_subfolder_holds_a_whole_repository(hub, repo_id, saved, cache):
    publish(hub, repo_id, saved("resnet"), subfolder="models/resnet")
    with hub.record() as requests:
        model = load(repo_id, cache_dir=cache, subfolder="models/resnet")
        model.set_stage("teacher")
    assert all(path.startswith("models/resnet/") for path in bodies(requests))
    assert torch.equal(logits(model), logits(load(saved("resnet"), stage="teacher")))
    with pytest.raises(RepositoryError, match="is not a PWL repository"):
        load(repo_id, cache_dir=cache)


def test_subfolder_of_a_folder(saved):
    folder = saved("resnet")
    assert load(folder.parent, subfolder=folder.name, stage=2).stage == 2


def test_private_repository_needs_the_token_at_every_stage(hub, pushed, cache, other_token):
    hub.store.set_private(pushed)
    for token in (False, other_token):
        with pytest.raises(RepositoryNotFoundError):
            load(pushed, cache_dir=cache, token=token)
    model = load(pushed, cache_dir=cache, token="hf_tester")
    with hub.record() as requests:
        model.load_next_stage()
        copy.deepcopy(model).load_next_stage()
    assert {r.user for r in requests} == {"tester"}
    assert len(requests) == 12


def test_explicit_token_goes_with_later_stages_and_copies_but_not_into_pickles(
    hub, pushed, cache, monkeypatch, other_token
):
    hub.store.set_private(pushed)
    # The environment's token would not do.
    monkeypatch.setenv("HF_TOKEN", other_token)
    model = load(pushed, cache_dir=cache, token="hf_tester")
    model.load_next_stage()
    other = copy.deepcopy(model)
    other.load_next_stage()
    assert (model.stage, other.stage) == (1, 2)
    repository = model.parts.store.repository
    assert b"hf_tester" not in pickle.dumps(repository)
    assert pickle.loads(pickle.dumps(repository)) == repository


def test_gated_or_lost_access_between_stages_leaves_the_model_as_it_was(hub, pushed, cache):
    model = load(pushed, cache_dir=cache, token=False)
    before = logits(model)
    hub.store.set_private(pushed)
    with pytest.raises(FetchError, match="the token may no longer read it"):
        model.load_next_stage()
    assert model.stage == 0
    assert torch.equal(logits(model), before)
    hub.store.set_private(pushed, False)
    assert model.load_next_stage() == 1


def test_repository_that_does_not_exist_raises_the_hubs_error(hub):
    with pytest.raises(RepositoryNotFoundError):
        load("tester/does-not-exist")


def test_cache_dir_is_where_every_file_goes(hub, pushed, cache):
    load(pushed, cache_dir=cache, stage=1)
    found = {path.name for path in cache.rglob("*") if path.is_symlink()}
    assert {"config.json", INDEX, STUDENT, "encoder-00001.safetensors"} <= found


def test_local_files_only_uses_the_cache_and_asks_nothing(hub, pushed, cache):
    expected = logits(load(pushed, cache_dir=cache, stage=1))
    with hub.record() as requests:
        model = load(pushed, cache_dir=cache, local_files_only=True)
        model.load_next_stage()
        before = logits(model)
        with pytest.raises(FetchError, match=f"'{shard(2)}' could not be fetched: it is not in the local cache"):
            model.load_next_stage()
    assert requests == []
    assert torch.equal(before, expected)
    assert model.stage == 1
    assert torch.equal(logits(model), expected)


def test_local_files_only_without_a_cache_says_so(hub, pushed, cache):
    with pytest.raises(RevisionResolutionError, match="local_files_only=True"):
        load(pushed, cache_dir=cache, local_files_only=True)


def test_force_download_fetches_each_needed_file_once_again(hub, pushed, cache):
    load(pushed, cache_dir=cache, stage=2)
    with hub.record() as requests:
        model = load(pushed, cache_dir=cache, force_download=True)
        model.load_next_stage()
        model.set_stage(0)
    assert sorted(bodies(requests)) == sorted([*START, encoder(1), statistics("TSSS"), shard(1)])


def test_shard_damaged_on_the_way_is_fetched_once_more(hub, pushed, saved, cache):
    model = load(pushed, cache_dir=cache)
    with hub.faulty(Fault("corrupt", path=shard(1))), hub.record() as requests:
        model.load_next_stage()
    assert bodies(requests).count(shard(1)) == 2
    assert bodies(requests).count(encoder(1)) == 1
    assert torch.equal(logits(model), logits(load(saved("resnet"), stage=1)))


def test_shard_that_is_always_damaged_is_refused_and_comes_when_the_line_is_good(hub, pushed, saved, cache):
    model = load(pushed, cache_dir=cache)
    before = logits(model)
    with (
        hub.faulty(Fault("corrupt", path=shard(1), times=None)),
        pytest.raises(RepositoryError, match=f"'{shard(1)}' has"),
    ):
        model.load_next_stage()
    assert model.stage == 0
    assert torch.equal(logits(model), before)
    assert model.load_next_stage() == 1
    assert torch.equal(logits(model), logits(load(saved("resnet"), stage=1)))


def test_damaged_cache_is_mended_online_and_refused_offline(hub, pushed, cache):
    load(pushed, cache_dir=cache, stage=1)
    blob = next(cache.rglob("model-00001-of-00004.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    model = load(pushed, cache_dir=cache, local_files_only=True)
    with pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
        model.load_next_stage()
    assert model.stage == 0
    assert load(pushed, cache_dir=cache, stage=1).stage == 1


def test_server_error_in_the_middle_of_a_stage_attaches_nothing(hub, pushed, saved, cache):
    model = load(pushed, cache_dir=cache, retry=RetryPolicy(tries=2, first_wait=0))
    before = logits(model)
    fault = Fault("status", path=shard(1), status=500, times=None)
    with hub.faulty(fault), pytest.raises(FetchError, match=shard(1)) as failed:
        model.load_next_stage()
    assert f"{pushed}@{hub.store.head(pushed)}" in str(failed.value)
    assert (model.stage, model.sources) == (0, "SSSS")
    assert not any(name.startswith("teacher.") for name, _ in model.named_parameters())
    assert torch.equal(logits(model), before)
    assert model.load_next_stage() == 1


def test_malformed_manifest_is_refused_before_anything_else_is_fetched(hub, pushed, cache, saved):
    text = tree(saved("resnet"))[INDEX].replace(b"teacher/model-00001", b"../../model-00001")
    hub.store.commit(pushed, {INDEX: text})
    with hub.record() as requests, pytest.raises(RepositoryError, match="must be a relative path") as refused:
        load(pushed, cache_dir=cache, stage=2)
    assert bodies(requests) == [INDEX]
    assert f"{pushed}@{hub.store.head(pushed)}" in str(refused.value)


def test_file_missing_on_the_hub_is_refused_by_name(hub, pushed, cache):
    hub.store.commit(pushed, deletions=[shard(1)])
    model = load(pushed, cache_dir=cache)
    with pytest.raises(RepositoryError, match=f"has no file '{shard(1)}'"):
        model.load_next_stage()
    assert model.stage == 0


def test_save_of_a_partly_loaded_model_fetches_the_rest_once(hub, pushed, saved, cache, tmp_path):
    model = load(pushed, cache_dir=cache, stage=1)
    with hub.record() as requests:
        model.save_pretrained(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(saved("resnet"))
    fetched = [path for path in bodies(requests) if path.endswith(".safetensors")]
    expected = {path for path in tree(saved("resnet")) if path.endswith(".safetensors")}
    expected -= {STUDENT, shard(1), encoder(1), statistics("TSSS")}
    assert sorted(fetched) == sorted(expected)
    assert model.stage == 1


def test_image_processor_is_saved_from_the_same_commit(hub, pushed, cache, tmp_path):
    hub.store.commit(pushed, {"preprocessor_config.json": b'{"size": 1}'})
    model = load(pushed, cache_dir=cache)
    hub.store.commit(pushed, {"preprocessor_config.json": b'{"size": 2}'})
    model.save_pretrained(tmp_path / "out")
    for name in ("preprocessor_config.json", "teacher/preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_text() == '{"size": 1}'
