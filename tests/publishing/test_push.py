"""Publishing: one commit, only what changed, from any stage, with transformers' arguments."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import CommitOperationCopy, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from pwl_hf import PublishError, PWLForImageClassification, RepositoryError, RetryPolicy
from pwl_hf.modeling.publishing.push import Target, push_folder
from pwl_hf.modeling.repository.source import Repository
from tests.hub import Fault
from tests.tiny import tiny_images, tiny_model

N_FILES = 11  # 1 student, 4 shards, 3 encoders, 3 decoders


@pytest.fixture
def model():
    return tiny_model("vit")


@pytest.fixture
def pushed(hub, repo_id, model):
    model.push_to_hub(repo_id)
    return repo_id


def _weights(paths):
    return {path for path in paths if path.endswith(".safetensors")}


def test_push_makes_one_commit_that_loads_at_every_stage(hub, repo_id, model):
    commit = model.push_to_hub(repo_id)
    made = hub.store.commits(repo_id)
    assert made[0].oid == commit.oid
    assert len(made) == 2  # the Hub's own first one, and ours
    assert len(_weights(hub.store.files(repo_id))) == N_FILES
    images = tiny_images("vit")
    for stage in range(5):
        loaded = PWLForImageClassification.from_pretrained(repo_id, stage=stage)
        assert torch.equal(loaded(images).logits, model(images, sources=loaded.sources).logits)


def test_pushed_files_are_the_saved_ones(hub, pushed, model, tmp_path):
    model.save_pretrained(tmp_path)
    remote = hub.store.files(pushed)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert remote[path.relative_to(tmp_path).as_posix()] == path.read_bytes()
    assert set(remote) - {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")} == {
        "README.md",
        ".gitattributes",
    }


def test_push_of_the_same_model_sends_no_weights(hub, pushed, model):
    with hub.record() as requests:
        model.push_to_hub(pushed)
    assert not [r for r in requests if r.method == "PUT"]


def test_push_of_a_changed_student_sends_the_student_alone(hub, pushed, model):
    with torch.no_grad():
        model.student.classifier.bias.add_(1)
    model.push_to_hub(pushed)
    operations = hub.store.commits(pushed)[0].operations
    assert set(operations.lfs) == {"model.safetensors"}
    assert {"config.json", "pwl_index.json"} <= set(operations.added)


def test_push_removes_files_of_an_earlier_layout(hub, pushed):
    tiny_model("vit", num_stages=2).push_to_hub(pushed)
    assert len(hub.store.commits(pushed)) == 3
    assert _weights(hub.store.files(pushed)) == {
        "model.safetensors",
        "teacher/model-00001-of-00002.safetensors",
        "teacher/model-00002-of-00002.safetensors",
        "converters/encoder-00001.safetensors",
        "converters/decoder-00001.safetensors",
    }


def test_push_keeps_files_that_are_not_ours(hub, pushed, model):
    hub.store.commit(pushed, {"notes.md": b"mine", "images/a.png": b"png"}, "notes")
    model.push_to_hub(pushed)
    assert {"notes.md", "images/a.png"} <= set(hub.store.files(pushed))


def test_push_of_a_partly_loaded_model_copies_the_rest_on_the_server(hub, pushed, repo_id, model):
    loaded = PWLForImageClassification.from_pretrained(pushed, stage=1)
    with hub.record() as requests:
        loaded.push_to_hub("tester/copy-of-" + repo_id.rpartition("/")[2])
    target = "tester/copy-of-" + repo_id.rpartition("/")[2]
    operations = hub.store.commits(target)[0].operations
    never_pulled = {f"teacher/model-0000{k}-of-00004.safetensors" for k in (2, 3, 4)}
    assert never_pulled <= set(operations.copied)
    assert not [r for r in requests if r.method == "GET" and r.file in never_pulled]
    assert {p: b for p, b in hub.store.files(target).items() if p.endswith(".safetensors")} == {
        p: b for p, b in hub.store.files(pushed).items() if p.endswith(".safetensors")
    }
    images = tiny_images("vit")
    teacher = PWLForImageClassification.from_pretrained(target, stage="teacher")
    assert torch.equal(teacher(images).logits, model.teacher(images).logits)


@pytest.fixture
def no_copies(monkeypatch):
    """A server that copies no files between repositories."""
    create_commit = HfApi.create_commit

    def refuse_copies(self, repo, operations, **kwargs):
        if any(isinstance(operation, CommitOperationCopy) for operation in operations):
            raise ValueError("copies across storage regions are not supported")
        return create_commit(self, repo, operations, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", refuse_copies)


def test_push_downloads_where_the_server_cannot_copy(hub, pushed, repo_id, no_copies):
    loaded = PWLForImageClassification.from_pretrained(pushed)
    target = repo_id + "-elsewhere"
    loaded.push_to_hub(target)
    assert len(_weights(hub.store.commits(target)[0].operations.lfs)) == N_FILES
    assert PWLForImageClassification.from_pretrained(target, stage=4).stage == 4


def test_push_of_a_changed_student_where_the_server_cannot_copy(hub, pushed, repo_id, no_copies):
    loaded = PWLForImageClassification.from_pretrained(pushed)
    with torch.no_grad():
        loaded.student.classifier.bias.add_(1)
    target, images = repo_id + "-elsewhere", tiny_images("vit")
    loaded.push_to_hub(target)
    assert torch.equal(PWLForImageClassification.from_pretrained(target)(images).logits, loaded(images).logits)


def test_push_back_to_its_own_repository_touches_no_weights(hub, pushed):
    loaded = PWLForImageClassification.from_pretrained(pushed, stage=2)
    loaded.push_to_hub(pushed)
    made = hub.store.commits(pushed)
    for commit in made[: len(made) - 2]:
        assert not _weights([*commit.operations.lfs, *commit.operations.copied, *commit.operations.deleted])


def test_push_private_is_seen_by_its_owner_alone(hub, repo_id, model, other_token):
    model.push_to_hub(repo_id, private=True)
    assert PWLForImageClassification.from_pretrained(repo_id).stage == 0
    with pytest.raises(RepositoryNotFoundError):
        PWLForImageClassification.from_pretrained(repo_id, token=other_token)


def test_push_to_a_new_branch_leaves_main_alone(hub, pushed, model):
    before = hub.store.head(pushed, "main")
    with torch.no_grad():
        model.student.classifier.bias.add_(1)
    model.push_to_hub(pushed, revision="v2")
    assert hub.store.head(pushed, "main") == before
    images = tiny_images("vit")
    loaded = PWLForImageClassification.from_pretrained(pushed, revision="v2")
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_push_as_a_pull_request_leaves_main_alone(hub, pushed, model):
    before = hub.store.head(pushed, "main")
    with torch.no_grad():
        model.student.classifier.bias.add_(1)
    commit = model.push_to_hub(pushed, create_pr=True, commit_message="Better", commit_description="Really")
    assert hub.store.head(pushed, "main") == before
    assert commit.pr_revision == "refs/pr/1"
    assert PWLForImageClassification.from_pretrained(pushed, revision="refs/pr/1").stage == 0


def test_push_with_an_unknown_argument_raises(model):
    with pytest.raises(TypeError, match="colour"):
        model.push_to_hub("tester/x", colour="blue")


def test_save_pretrained_with_push_to_hub_publishes(hub, repo_id, model, tmp_path):
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id=repo_id)
    assert PWLForImageClassification.from_pretrained(repo_id).stage == 0


def test_push_folder_publishes_the_same_bytes(hub, repo_id, model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    push_folder(tmp_path, Target(repo_id))
    remote = hub.store.files(repo_id)
    assert all(remote[p.relative_to(tmp_path).as_posix()] == p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_push_folder_with_a_corrupt_file_raises_and_sends_nothing(hub, repo_id, model, tmp_path):
    model.save_pretrained(tmp_path)
    shard = tmp_path / "teacher" / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with hub.record() as requests, pytest.raises(RepositoryError, match=r"model-00002-of-00004.*sha256"):
        push_folder(tmp_path, Target(repo_id))
    assert not requests


def test_token_is_in_no_saved_file_and_no_representation(hub, pushed, tmp_path):
    loaded = PWLForImageClassification.from_pretrained(pushed, token="hf_tester")
    loaded.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hf_tester" in p.read_bytes()]
    assert "hf_tester" not in repr(Repository.open(pushed, token="hf_tester"))
    assert not [p for p, data in hub.store.files(pushed).items() if b"hf_tester" in data]


FAST = RetryPolicy(tries=3, first_wait=0.01)


@pytest.mark.parametrize("path", ["/repos/create", "/preupload/", "/info/lfs/objects/batch", "/commit/"])
def test_push_goes_through_after_a_server_error(hub, repo_id, model, path):
    with hub.faulty(Fault("status", path=path, method="POST", status=503)):
        model.push_to_hub(repo_id, retry=FAST)
    assert len(hub.store.commits(repo_id)) == 2
    assert PWLForImageClassification.from_pretrained(repo_id, stage=4).stage == 4


def test_push_whose_answer_was_lost_makes_no_second_commit(hub, repo_id, model):
    with hub.faulty(Fault("close", path="/commit/", method="POST")):
        model.push_to_hub(repo_id, retry=FAST)
    assert len(hub.store.commits(repo_id)) == 2


def test_push_that_fails_in_every_try_names_repository_and_cause(hub, repo_id, model):
    fault = Fault("status", path="/commit/", method="POST", status=500, times=None)
    with hub.faulty(fault), pytest.raises(PublishError, match=f"{repo_id} could not be pushed to.*500"):
        model.push_to_hub(repo_id, retry=FAST)
    model.push_to_hub(repo_id)
    assert len(hub.store.commits(repo_id)) == 2


def test_push_during_a_stream_publishes_one_whole_repository(hub, pushed, model):
    for turn in range(4):
        loaded = PWLForImageClassification.from_pretrained(pushed, stream=True)
        target = f"{pushed}-{turn}"
        loaded.push_to_hub(target)
        loaded.stream.wait()
        assert loaded.stream.exception is None
        files = hub.store.files(pushed)
        assert {p: b for p, b in hub.store.files(target).items() if p.endswith(".safetensors")} == {
            p: b for p, b in files.items() if p.endswith(".safetensors")
        }
