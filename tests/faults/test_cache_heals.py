"""A wrong file in the Hub's cache is replaced as soon as the Hub is right, in caches with links and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForImageClassification

from pwl_hf import FetchError, RepositoryError
from pwl_hf.downloading import download_stages
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.repository.verification import discard
from tests.hub import Fault, HubServer
from tests.hub.commits import make_entry
from tests.repository.helpers import INDEX, STUDENT, bodies, load, logits, shard, tree
from tests.tiny import tiny_model

PROCESSOR = "preprocessor_config.json"
SMALL = ["config.json", INDEX, PROCESSOR]


@pytest.fixture(params=["links", "no links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Whether the cache has links; and a memory of its own of what was checked."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", request.param == "no links")
    return request.param == "links"


@pytest.fixture
def with_processor(hub: HubServer, pushed: str) -> str:
    """The repository, with an image processor."""
    hub.store.commit(pushed, {PROCESSOR: b'{"image_processor_type": "ViTImageProcessor", "size": 8}\n'})
    return pushed


@contextmanager
def another(hub: HubServer, repo_id: str, path: str, content: bytes) -> Iterator[None]:
    """Under the same commit, another file is served meanwhile, with the ETag of what it is: as a cache between does."""
    commit = hub.store.get(repo_id).resolve("main")
    right = commit.files[path]
    sha256 = hub.store.blobs.add(content)
    commit.files[path] = make_entry(path, hub.store.blobs, sha256, right.lfs)
    try:
        yield
    finally:
        commit.files[path] = right


def in_cache(cache: Path, name: str) -> Path:
    [found] = [path for path in cache.rglob("snapshots/**/*") if path.as_posix().endswith(f"/{name}")]
    return found


def spoil(path: Path) -> None:
    """Change a byte within the file, as if it had changed on its way."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.resolve().write_bytes(content)


def test_caches_are_as_the_tests_take_them(hub, pushed, cache, links):
    load(pushed, cache_dir=cache)
    assert in_cache(cache, STUDENT).is_symlink() is links


# --- Damaged on the way, or on the disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["config.json", INDEX, STUDENT, shard(1)])
def test_damaged_file_of_the_cache_heals_in_one_call(hub, pushed, cache, answers, links, path):
    load(pushed, cache_dir=cache, stage=1)
    spoil(in_cache(cache, path))
    assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])
    with hub.record() as requests:
        assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])
    assert not bodies(requests)


@pytest.mark.parametrize("path", [*SMALL, STUDENT])
def test_file_that_is_damaged_on_the_way_is_never_seen(hub, with_processor, cache, answers, links, path, tmp_path):
    with hub.faulty(Fault("corrupt", path=f"/resolve/.*{path}$")):
        model = load(with_processor, cache_dir=cache)
        model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(model), answers[0])
    assert (tmp_path / "saved" / PROCESSOR).read_bytes() == hub.store.files(with_processor)[PROCESSOR]


@pytest.mark.parametrize("path", SMALL)
def test_small_file_that_is_damaged_each_time_is_refused_and_then_heals(hub, with_processor, cache, links, path):
    repository = Repository.open(with_processor, cache_dir=cache)
    with hub.faulty(Fault("corrupt", path=f"/resolve/.*{path}$", times=None)):
        with hub.record() as requests, pytest.raises(RepositoryError, match=rf"'{path}' is corrupt.*twice in a row"):
            repository.fetch_text(path)
        assert bodies(requests) == [path, path]
    assert repository.fetch_text(path) == hub.store.files(with_processor)[path]


def test_what_the_hub_said_of_a_plain_file_is_asked_once(hub, pushed, cache, links):
    load(pushed, cache_dir=cache)
    commit = hub.store.head(pushed)
    with hub.record() as requests:
        load(pushed, cache_dir=cache, revision=commit)
    assert not requests


def test_plain_file_that_cannot_be_compared_offline_is_taken_as_it_is(hub, pushed, cache, links, answers, monkeypatch):
    load(pushed, cache_dir=cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(logits(load(pushed, cache_dir=cache)), answers[0])
    spoil(in_cache(cache, "config.json"))
    with pytest.raises(RepositoryError, match="corrupt in the cache"):
        load(pushed, cache_dir=cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert torch.equal(logits(load(pushed, cache_dir=cache)), answers[0])


def test_forced_download_replaces_the_file_also_without_links(hub, pushed, cache, links, answers):
    load(pushed, cache_dir=cache)
    for path in ("config.json", INDEX, STUDENT):
        in_cache(cache, path).resolve().write_bytes(b"junk")
    assert torch.equal(logits(load(pushed, cache_dir=cache, force_download=True)), answers[0])
    assert in_cache(cache, "config.json").read_bytes() == hub.store.files(pushed)["config.json"]


# --- Wrong as it was served -----------------------------------------------------------------------------------------


def test_shard_that_was_served_wrong_for_a_while_is_refused_and_heals(hub, pushed, cache, links, answers, tmp_path):
    tiny_model("resnet", seed=9).save_pretrained(tmp_path / "other")
    model = load(pushed, cache_dir=cache)
    with another(hub, pushed, shard(1), (tmp_path / "other" / shard(1)).read_bytes()):
        for _ in range(2):
            with hub.record() as requests, pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
                model.load_next_stage()
            # Not again and again: it would come the same.
            assert bodies(requests).count(shard(1)) <= 1
        assert not bodies(requests)
    assert torch.equal(logits(model), answers[0])
    model.load_next_stage()
    assert torch.equal(logits(model), answers[1])


def changed(text: bytes) -> bytes:
    """The same manifest as of another save: readable, and wrong."""
    index = json.loads(text)
    index["stages"][0]["files"][0]["sha256"] = "0" * 64
    return json.dumps(index).encode()


@pytest.mark.parametrize("path", ["config.json", INDEX])
@pytest.mark.parametrize("content", ["an error page", "another fingerprint"])
def test_small_file_that_was_served_wrong_for_a_while_heals_in_one_call(
    hub, pushed, cache, links, answers, tmp_path, saved, path, content
):
    wrong = b"<html>busy</html>"
    if content == "another fingerprint":
        tiny_model("resnet", seed=9).save_pretrained(tmp_path / "other")
        wrong = (tmp_path / "other" / path).read_bytes()
    with another(hub, pushed, path, wrong), pytest.raises(RepositoryError):
        load(pushed, cache_dir=cache)
    assert torch.equal(logits(load(pushed, cache_dir=cache)), answers[0])


def test_wrong_manifest_under_a_model_is_found_when_a_stage_does_not_fit(hub, pushed, cache, links, answers, tmp_path):
    """Config and manifest of another save, which fit each other; the weights come from the right one."""
    tiny_model("resnet", seed=9).save_pretrained(tmp_path / "other")
    other = {path: (tmp_path / "other" / path).read_bytes() for path in ("config.json", INDEX, STUDENT)}
    with (
        another(hub, pushed, "config.json", other["config.json"]),
        another(hub, pushed, INDEX, other[INDEX]),
        another(hub, pushed, STUDENT, other[STUDENT]),
    ):
        model = load(pushed, cache_dir=cache)
    with pytest.raises(RepositoryError, match=r"the Hub has another pwl_index\.json now.*load the model again"):
        model.load_next_stage()
    assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])


def test_repository_that_is_wrong_for_good_is_downloaded_once(hub, pushed, cache, links, tmp_path):
    tiny_model("resnet", seed=9).save_pretrained(tmp_path / "other")
    hub.store.commit(pushed, {shard(1): (tmp_path / "other" / shard(1)).read_bytes()})
    for turn in range(3):
        with hub.record() as requests, pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
            load(pushed, cache_dir=cache, stage=1)
        assert bodies(requests).count(shard(1)) == (turn == 0)


def test_wrong_file_stays_in_the_cache_if_the_hub_does_not_answer(hub, pushed, cache, links, quick, unhurried_client):
    model = load(pushed, cache_dir=cache, stage=1, retry=quick)
    model.set_stage(0)
    spoil(in_cache(cache, shard(1)))
    before = tree(cache)
    with hub.faulty(Fault("status", path="/resolve/", method="*", times=None)), pytest.raises(FetchError):
        model.load_next_stage()
    assert {path: content for path, content in tree(cache).items() if ".locks" not in path} == {
        path: content for path, content in before.items() if ".locks" not in path
    }
    model.load_next_stage()


def test_auto_class_that_has_read_a_damaged_config_says_so_and_heals(hub, pushed, cache, links, answers):
    load(pushed, cache_dir=cache)
    config = in_cache(cache, "config.json")
    data = json.loads(config.read_bytes())
    # Still a config, of another network.
    data["student_config"]["hidden_act"] = "gelu"
    config.resolve().write_text(json.dumps(data))
    with pytest.raises(RepositoryError, match=r"was damaged in the cache.*load the model again"):
        AutoModelForImageClassification.from_pretrained(pushed, cache_dir=cache)
    model = AutoModelForImageClassification.from_pretrained(pushed, cache_dir=cache)
    assert torch.equal(logits(model), answers[0])


# --- Links of others in a shared cache ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["config.json", STUDENT, shard(1)])
def test_target_of_a_strangers_link_in_the_cache_stays_and_the_cache_heals(hub, pushed, cache, answers, tmp_path, path):
    load(pushed, cache_dir=cache, stage=1)
    pointer, victim = in_cache(cache, path), tmp_path / "victim"
    victim.write_bytes(b"mine")
    pointer.unlink()
    pointer.symlink_to(victim)
    assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])
    assert victim.read_bytes() == b"mine"
    assert pointer.resolve() != victim
    assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])


def test_folder_of_the_cache_that_is_a_strangers_link_heals_and_what_it_leads_to_stays(
    hub, pushed, cache, answers, tmp_path
):
    load(pushed, cache_dir=cache, stage=1)
    folder, victims = in_cache(cache, shard(1)).parent, tmp_path / "victims"
    victims.mkdir()
    (victims / Path(shard(1)).name).write_bytes(b"mine")
    for found in folder.iterdir():
        found.unlink()
    folder.rmdir()
    folder.symlink_to(victims)
    assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])
    assert tree(victims) == {Path(shard(1)).name: b"mine"}


def test_discard_removes_the_pointer_and_its_own_blob_alone(tmp_path):
    storage = tmp_path / "models--org--name"
    snapshot = storage / "snapshots" / "c"
    (snapshot / "teacher").mkdir(parents=True)
    (storage / "blobs").mkdir()
    shared = tmp_path / "shared"
    for name in ("a" * 64, "b" * 64):
        (storage / "blobs" / name).write_text("blob")
    shared.write_text("mine")
    (storage / "blobs" / ("c" * 64)).symlink_to(shared)
    pointers = {"own": "a" * 64, "to a store": "c" * 64}
    for name, blob in pointers.items():
        (snapshot / "teacher" / name).symlink_to(f"../../../blobs/{blob}")
    (snapshot / "foreign").symlink_to(shared)
    (snapshot / "relative").symlink_to("../../../shared")
    (snapshot / "plain").write_text("file")
    for name in ("teacher/own", "teacher/to a store", "foreign", "relative", "plain"):
        discard(snapshot / name)
        assert not (snapshot / name).is_symlink()
        assert not (snapshot / name).exists()
    assert shared.read_text() == "mine"
    assert sorted(path.name for path in (storage / "blobs").iterdir()) == ["b" * 64]


# --- Copies into a folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*SMALL, STUDENT])
def test_download_copies_nothing_that_was_damaged(hub, with_processor, cache, links, tmp_path, path):
    download_stages(with_processor, 0, cache_dir=cache)
    spoil(in_cache(cache, path))
    download_stages(with_processor, 0, cache_dir=cache, local_dir=tmp_path / "here")
    right = hub.store.files(with_processor)
    assert tree(tmp_path / "here") == {name: right[name] for name in (*SMALL, STUDENT)}


def test_save_copies_no_image_processor_that_was_damaged(hub, with_processor, cache, links, tmp_path):
    model = load(with_processor, cache_dir=cache)
    model.save_pretrained(tmp_path / "first")
    spoil(in_cache(cache, PROCESSOR))
    model.save_pretrained(tmp_path / "second")
    right = hub.store.files(with_processor)[PROCESSOR]
    for name in (PROCESSOR, f"teacher/{PROCESSOR}"):
        assert (tmp_path / "second" / name).read_bytes() == right


def test_push_sends_no_image_processor_that_was_damaged(hub, with_processor, cache, links):
    model = load(with_processor, cache_dir=cache)
    model.push_to_hub(f"{with_processor}-one")
    spoil(in_cache(cache, PROCESSOR))
    model.push_to_hub(f"{with_processor}-two")
    assert hub.store.files(f"{with_processor}-two")[PROCESSOR] == hub.store.files(with_processor)[PROCESSOR]


def test_snapshot_of_the_cache_that_is_damaged_is_refused_as_a_folder_too(hub, pushed, cache, answers):
    load(pushed, cache_dir=cache)
    snapshot = in_cache(cache, STUDENT).parent
    assert torch.equal(logits(load(snapshot)), answers[0])
    spoil(in_cache(cache, "config.json"))
    with pytest.raises(RepositoryError, match=r"'config\.json' is corrupt"):
        load(snapshot)
