"""The test Hub, seen by the real client: what it pushes arrives, and it pulls back what is there."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    resolve_revision,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import Fault, HubServer, Store

WEIGHTS = bytes(range(256)) * 64


@pytest.fixture
def api() -> HfApi:
    return HfApi()


@pytest.fixture
def repo(hub: HubServer, repo_id: str) -> str:
    hub.store.create_repo(repo_id)
    hub.store.commit(
        repo_id,
        {"config.json": b"{}", "model.safetensors": WEIGHTS, "stages/stage_1.safetensors": WEIGHTS[:999]},
        "first",
    )
    return repo_id


def pull(repo_id: str, name: str, cache: Path, **options) -> bytes:
    return Path(hf_hub_download(repo_id, name, cache_dir=cache, **options)).read_bytes()


# Repositories and who may see them


def test_import_leaves_client_unimported():
    code = "import sys, tests.hub; sys.exit(any(m in sys.modules for m in ('huggingface_hub', 'torch')))"
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_create_repo_exist_ok_and_conflict(hub, api, repo_id):
    assert api.whoami()["name"] == "tester"
    url = api.create_repo(repo_id)
    assert url.repo_id == repo_id
    assert api.create_repo(repo_id, exist_ok=True).repo_id == repo_id
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo_id)
    assert api.list_repo_files(repo_id) == [".gitattributes"]
    api.delete_repo(repo_id)
    assert not api.repo_exists(repo_id)
    api.delete_repo(repo_id, missing_ok=True)


def test_create_repo_in_organization_needs_membership(hub, api, repo_id):
    name = repo_id.split("/")[1]
    assert api.create_repo(f"org/{name}").repo_id == f"org/{name}"
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo(f"other-org/{name}")


def test_private_repo_only_owner_reads(hub, api, repo_id, other_token, tmp_path):
    api.create_repo(repo_id, private=True)
    api.upload_file(repo_id=repo_id, path_or_fileobj=b"{}", path_in_repo="config.json")
    assert api.model_info(repo_id).private
    assert pull(repo_id, "config.json", tmp_path) == b"{}"
    for token in (False, other_token):
        with pytest.raises(RepositoryNotFoundError):
            pull(repo_id, "config.json", tmp_path / "other", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(repo_id, token=token)
    api.update_repo_settings(repo_id, private=False)
    assert pull(repo_id, "config.json", tmp_path / "other", token=False) == b"{}"


def test_gated_repo_needs_grant(hub, api, repo, other_token, tmp_path):
    hub.store.set_gated(repo)
    assert api.model_info(repo, token=other_token).gated
    for token in (False, other_token):
        with pytest.raises(GatedRepoError):
            pull(repo, "config.json", tmp_path, token=token)
    hub.store.grant(repo, "other")
    assert pull(repo, "config.json", tmp_path, token=other_token) == b"{}"


def test_unknown_token_and_foreign_namespace_cannot_write(hub, api, repo, other_token):
    options = {"repo_id": repo, "path_or_fileobj": b"x", "path_in_repo": "x.txt"}
    with pytest.raises(HfHubHTTPError, match="401"):
        api.upload_file(**options, token="hf_nobody")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.upload_file(**options, token=other_token)
    assert "x.txt" not in hub.store.files(repo)


def test_missing_things_raise_the_clients_errors(hub, repo, tmp_path):
    with pytest.raises(EntryNotFoundError):
        pull(repo, "nothing.json", tmp_path)
    with pytest.raises(RevisionNotFoundError):
        pull(repo, "config.json", tmp_path, revision="nowhere")
    with pytest.raises(RepositoryNotFoundError):
        pull("tester/does-not-exist", "config.json", tmp_path)


# Pushing


def test_upload_folder_sends_lfs_and_regular_files(hub, api, repo_id, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "README.md").write_text("---\npipeline_tag: image-classification\n---\n# hello")
    (tmp_path / "sub" / "model.safetensors").write_bytes(WEIGHTS)
    api.create_repo(repo_id)
    info = api.upload_folder(repo_id=repo_id, folder_path=tmp_path, commit_message="push")
    assert info.oid == hub.store.head(repo_id)
    files = hub.store.files(repo_id)
    assert files.pop(".gitattributes")
    assert files == {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*.*")}
    commit = hub.store.commits(repo_id)[0]
    assert (commit.title, commit.author) == ("push", "tester")
    assert commit.operations.lfs == ("sub/model.safetensors",)
    assert sorted(commit.operations.added) == ["README.md", "config.json", "empty.bin"]
    assert api.model_info(repo_id).pipeline_tag == "image-classification"
    [put] = [request for request in hub.requests if request.method == "PUT"]
    assert put.received == len(WEIGHTS)


def test_second_identical_push_makes_no_commit_and_sends_no_weights(hub, api, repo_id, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    api.create_repo(repo_id)
    first = api.upload_folder(repo_id=repo_id, folder_path=tmp_path)
    with hub.record() as requests:
        assert api.upload_folder(repo_id=repo_id, folder_path=tmp_path).oid == first.oid
    assert len(hub.store.commits(repo_id)) == 2
    assert not [request for request in requests if request.method == "PUT" or "/commit/" in request.path]


def test_delete_operations_and_patterns(hub, api, repo, tmp_path):
    api.create_commit(repo, [CommitOperationDelete("config.json")], commit_message="one")
    assert hub.store.commits(repo)[0].operations.deleted == ("config.json",)
    with pytest.raises(EntryNotFoundError):
        api.create_commit(repo, [CommitOperationDelete("config.json")], commit_message="again")
    (tmp_path / "config.json").write_text("{}")
    api.upload_folder(repo_id=repo, folder_path=tmp_path, delete_patterns=["stages/*"])
    assert set(hub.store.files(repo)) == {".gitattributes", "config.json", "model.safetensors"}
    hub.store.commit(repo, {"stages/a.txt": b"a", "stages/b/c.txt": b"c"})
    api.delete_folder("stages", repo)
    assert hub.store.commits(repo)[0].operations.deleted_folders == ("stages",)
    assert "stages/b/c.txt" not in hub.store.files(repo)


def test_copy_within_repo_moves_no_weights(hub, api, repo):
    operations = [
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
        CommitOperationCopy("config.json", "copy.json"),
    ]
    with hub.record() as requests:
        api.create_commit(repo, operations, commit_message="copy")
    commit = hub.store.commits(repo)[0]
    assert commit.operations.copied == ("copy.safetensors",)
    assert commit.operations.added == ("copy.json",)
    assert hub.store.files(repo)["copy.safetensors"] == WEIGHTS
    assert sum(request.sent + request.received for request in requests) < len(WEIGHTS)


def test_copy_across_repos_duplicates_content_first(hub, api, repo):
    target = f"org/{repo.split('/')[1]}"
    api.create_repo(target)
    operation = CommitOperationCopy("model.safetensors", "a.safetensors", src_repo_id=repo, src_repo_type="model")
    with hub.record() as requests:
        api.create_commit(target, [operation], commit_message="copy")
    assert hub.store.files(target)["a.safetensors"] == WEIGHTS
    assert hub.store.commits(target)[0].operations.copied == ("a.safetensors",)
    assert f"/api/models/{repo}/lfs-files/duplicate" in [request.path for request in requests]


def test_create_pr_leaves_main_and_serves_pr_revision(hub, api, repo, other_token, tmp_path):
    head = hub.store.head(repo)
    info = api.upload_file(
        repo_id=repo,
        path_or_fileobj=WEIGHTS[::-1],
        path_in_repo="model.safetensors",
        create_pr=True,
        token=other_token,
    )
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert hub.store.head(repo) == head
    assert pull(repo, "model.safetensors", tmp_path, revision="refs/pr/1") == WEIGHTS[::-1]
    [ref] = api.list_repo_refs(repo, include_pull_requests=True).pull_requests
    assert ref.target_commit == info.oid == hub.store.head(repo, "refs/pr/1")


def test_stale_parent_refused_with_412(hub, api, repo):
    head = hub.store.head(repo)
    hub.store.commit(repo, {"other.txt": b"x"})
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(repo, [CommitOperationAdd("a.txt", b"a")], commit_message="late", parent_commit=head)
    assert "a.txt" not in hub.store.files(repo)


def test_commit_to_missing_branch_raises(hub, api, repo):
    options = {"repo_id": repo, "path_or_fileobj": b"a", "path_in_repo": "a.txt", "revision": "dev/x"}
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(**options)
    api.create_branch(repo, branch="dev/x")
    api.upload_file(**options)
    assert "a.txt" in hub.store.files(repo, "dev/x")
    assert "a.txt" not in hub.store.files(repo)
    assert sorted(ref.name for ref in api.list_repo_refs(repo).branches) == ["dev/x", "main"]
    api.delete_branch(repo, branch="dev/x")
    assert not api.revision_exists(repo, "dev/x")


# Pulling


def test_snapshot_download_and_listings(hub, api, repo, tmp_path):
    folder = Path(snapshot_download(repo, cache_dir=tmp_path))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == set(hub.store.files(repo)) == set(api.list_repo_files(repo))
    assert (folder / "stages/stage_1.safetensors").read_bytes() == WEIGHTS[:999]
    top = {item.path: item for item in api.list_repo_tree(repo, expand=True)}
    assert set(top) == {".gitattributes", "config.json", "model.safetensors", "stages"}
    assert top["model.safetensors"].lfs.size == len(WEIGHTS)
    assert top["stages"].last_commit.title == "first"
    assert [item.path for item in api.list_repo_tree(repo, "stages")] == ["stages/stage_1.safetensors"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "no-folder"))
    [info] = api.get_paths_info(repo, ["model.safetensors", "nothing"])
    assert info.lfs.sha256 == hub.store.entries(repo)["model.safetensors"].sha256
    sizes = {sibling.rfilename: sibling.size for sibling in api.model_info(repo, files_metadata=True).siblings}
    assert sizes["model.safetensors"] == len(WEIGHTS)
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["first", "initial commit"]


def test_moved_branch_pinned_commit_and_tag_still_served(hub, api, repo, tmp_path):
    pinned = resolve_revision(repo, cache_dir=tmp_path)
    api.create_tag(repo, tag="v1")
    hub.store.commit(repo, {"model.safetensors": b"new"}, deletions=["stages/"])
    assert pull(repo, "model.safetensors", tmp_path / "a") == b"new"
    assert pull(repo, "model.safetensors", tmp_path, revision=pinned) == WEIGHTS
    assert pull(repo, "stages/stage_1.safetensors", tmp_path, revision=pinned.resolved) == WEIGHTS[:999]
    assert pull(repo, "stages/stage_1.safetensors", tmp_path / "b", revision="v1") == WEIGHTS[:999]


def test_requests_are_counted(hub, repo, tmp_path):
    with hub.record() as requests:
        path = hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path)
    assert [(request.method, request.status, request.sent) for request in requests] == [
        ("HEAD", 200, 0),
        ("GET", 200, len(WEIGHTS)),
    ]
    assert {(request.file, request.user) for request in requests} == {("model.safetensors", "tester")}
    with hub.record() as requests:
        assert hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path) == path
    assert [request.method for request in requests] == ["HEAD"]
    with hub.record() as requests:
        hf_hub_download(repo, "model.safetensors", cache_dir=tmp_path, revision=hub.store.head(repo))
    assert requests == []
    hub.clear_requests()
    assert hub.requests == []


@pytest.mark.parametrize(
    ("header", "status", "expected"),
    [
        ("bytes=10-19", 206, WEIGHTS[10:20]),
        ("bytes=16000-", 206, WEIGHTS[16000:]),
        ("bytes=-5", 206, WEIGHTS[-5:]),
        (None, 200, WEIGHTS),
    ],
)
def test_range(hub, repo, header, status, expected):
    url = f"{hub.url}/{repo}/resolve/main/model.safetensors"
    response = httpx2.get(url, headers={"Range": header} if header else {})
    assert (response.status_code, response.content) == (status, expected)
    assert hub.requests[-1].range == header
    assert httpx2.get(url, headers={"Range": "bytes=99999-"}).status_code == 416


def test_datasets_are_served_too(hub, api, repo_id, tmp_path):
    api.create_repo(repo_id, repo_type="dataset")
    api.upload_file(repo_id=repo_id, repo_type="dataset", path_or_fileobj=WEIGHTS, path_in_repo="a.bin")
    assert pull(repo_id, "a.bin", tmp_path, repo_type="dataset") == WEIGHTS
    assert not api.repo_exists(repo_id)


def test_store_is_read_back_from_disk(tmp_path):
    store = Store(tmp_path)
    store.create_repo("a/b", private=True)
    oid = store.commit("a/b", {"x.bin": WEIGHTS}, "first")
    again = Store(tmp_path)
    assert again.head("a/b") == oid
    assert again.get("a/b").private
    assert again.files("a/b") == store.files("a/b")
    assert again.commits("a/b") == store.commits("a/b")
    again.delete_repo("a/b")
    assert Store(tmp_path).repositories() == []


# Faults


def test_closed_download_resumes_by_range(hub, repo, tmp_path):
    content = WEIGHTS * 768  # 12 MiB; the client resumes at a multiple of 10
    hub.store.commit(repo, {"big.safetensors": content})
    hub.faults.append(Fault("close", path=r"big\.safetensors$", after=11 << 20))
    with hub.record() as requests:
        assert pull(repo, "big.safetensors", tmp_path) == content
    assert [(request.method, request.fault) for request in requests] == [
        ("HEAD", None),
        ("GET", "close"),
        ("GET", None),
    ]
    assert requests[-1].range == "bytes=10485760-"
    assert requests[1].sent == 11 << 20


def test_status_fault_has_headers_and_no_effect(hub, api, repo):
    hub.faults.append(Fault("status", path="/commit/", method="POST", status=503, headers={"Retry-After": "1"}))
    options = {"repo_id": repo, "path_or_fileobj": b"a", "path_in_repo": "a.txt"}
    with pytest.raises(HfHubHTTPError, match="503") as caught:
        api.upload_file(**options)
    assert caught.value.response.headers["Retry-After"] == "1"
    assert "a.txt" not in hub.store.files(repo)
    api.upload_file(**options)
    assert "a.txt" in hub.store.files(repo)


def test_lost_answer_has_its_effect(hub, api, repo):
    hub.faults.append(Fault("reset", path="/commit/", method="POST"))
    with pytest.raises(httpx2.TransportError):
        api.upload_file(repo_id=repo, path_or_fileobj=b"a", path_in_repo="a.txt")
    assert "a.txt" in hub.store.files(repo)


def test_reset_truncate_and_corrupt(hub, repo, tmp_path):
    with hub.faulty(Fault("reset", after=100)), pytest.raises(httpx2.ReadError):
        pull(repo, "model.safetensors", tmp_path / "reset")
    with hub.faulty(Fault("truncate", after=100)), pytest.raises(OSError, match="Consistency check failed"):
        pull(repo, "model.safetensors", tmp_path / "truncate")
    with hub.faulty(Fault("corrupt", after=3)):
        corrupt = pull(repo, "model.safetensors", tmp_path / "corrupt")
    assert [index for index in range(len(WEIGHTS)) if corrupt[index] != WEIGHTS[index]] == [3]
    assert pull(repo, "model.safetensors", tmp_path / "good") == WEIGHTS


def test_rule_counts_and_skips(hub, repo):
    hub.faults.append(Fault("status", path="config", status=500, times=2, skip=1))
    url = f"{hub.url}/{repo}/resolve/main/"
    assert httpx2.get(url + "model.safetensors").status_code == 200
    assert [httpx2.get(url + "config.json").status_code for _ in range(4)] == [200, 500, 500, 200]


def test_stall_latency_and_bandwidth_take_their_time_at_least(hub, repo, tmp_path):
    def seconds(name: str) -> float:
        start = time.monotonic()
        assert pull(repo, "model.safetensors", tmp_path / name) == WEIGHTS
        return time.monotonic() - start

    with hub.faulty(Fault("stall", after=1000, seconds=0.3)):
        assert seconds("stall") > 0.3
    hub.latency = 0.1
    assert seconds("latency") > 0.2
    hub.latency, hub.bandwidth = 0.0, len(WEIGHTS) / 0.3
    assert seconds("bandwidth") >= 0.3


@pytest.mark.parametrize("lifted", ["rule", "reset", "bandwidth"])
def test_answers_that_wait_go_on_when_what_they_wait_for_is_lifted(hub, repo, tmp_path, lifted):
    stalled = Fault("stall", path="model", after=1000, seconds=3600, times=None)
    with ThreadPoolExecutor(1) as other, hub.faulty(*[stalled][: lifted == "rule"]):
        if lifted == "reset":
            hub.faults.append(stalled)
        if lifted == "bandwidth":
            hub.bandwidth = len(WEIGHTS) / 3600
        found = other.submit(pull, repo, "model.safetensors", tmp_path)
        while not any(request.file == "model.safetensors" and request.status for request in hub.requests):
            time.sleep(0.001)
        time.sleep(0.1)
        assert not found.done()
        if lifted == "reset":
            hub.reset()
        if lifted == "bandwidth":
            hub.bandwidth = None
    assert found.result() == WEIGHTS


# Around transformers


def test_subprocess_pulls_from_the_same_hub(hub, repo, fresh_env):
    code = f"from huggingface_hub import hf_hub_download; hf_hub_download({repo!r}, 'config.json')"
    subprocess.run([sys.executable, "-c", code], env=fresh_env, check=True)
    assert [request.file for request in hub.requests] == ["config.json"] * 2
    subprocess.run([sys.executable, "-c", code], env={**fresh_env, "HF_HUB_OFFLINE": "1"}, check=True)
    assert len(hub.requests) == 2


def test_transformers_model_round_trip(hub, repo_id):
    torch = pytest.importorskip("torch")
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessorPil,
    )

    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=4,
        patch_size=2,
    )
    model = ViTForImageClassification(config).eval()
    model.push_to_hub(repo_id)
    ViTImageProcessorPil().push_to_hub(repo_id)
    assert {"config.json", "model.safetensors"} <= set(hub.store.files(repo_id))
    assert "model.safetensors" in hub.store.commits(repo_id)[1].operations.lfs
    loaded = AutoModelForImageClassification.from_pretrained(repo_id).eval()
    assert AutoImageProcessor.from_pretrained(repo_id, backend="pil").size == ViTImageProcessorPil().size
    pixels = torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits, rtol=0, atol=0)
