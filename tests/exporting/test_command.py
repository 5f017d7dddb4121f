"""`pwl-hf export`: a folder in place, another folder, and one commit upon the one that was read on the Hub."""

from __future__ import annotations

import shutil

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from pwl_hf import OverwriteError, PublishError, RepositoryError, RetryPolicy
from pwl_hf.modeling.graphs.index import INDEX_FILE
from pwl_hf.modeling.publishing.push import Target, push_attachments
from pwl_hf.modeling.publishing.saving import write_attachments
from pwl_hf.modeling.repository.manifest import Manifest
from pwl_hf.modeling.repository.source import Repository
from tests.exporting.helpers import assert_equals_torch
from tests.exporting.odd_net import odd_model
from tests.hub import Fault
from tests.repository.helpers import load, publish, tree

pytestmark = pytest.mark.usefixtures("odd_net")


@pytest.fixture
def whole(tmp_path):
    """What an export of it gives."""
    odd_model().export(tmp_path / "whole")
    return tree(tmp_path / "whole")


@pytest.fixture
def pushed(hub, repo_id, folder):
    publish(hub, repo_id, folder)
    return repo_id


def files(hub, repo_id, revision="main"):
    found = hub.store.files(repo_id, revision)
    del found[".gitattributes"]
    return found


def weights_sent(requests):
    return [r.path for r in requests if "safetensors" in r.path and r.method in ("PUT", "POST")]


# --- Folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gets_its_graphs(run, folder, whole):
    code, out, err = run("export", folder)
    assert (code, err) == (0, "")
    *stages, last = out.splitlines()
    assert [line.split(":")[0] for line in stages] == ["stage 0", "stage 1", "stage 2"]
    assert all(line.endswith(" of the logits' range from torch") for line in stages)
    assert last.startswith("6 files, ")
    assert last.endswith("the weights stay in the repository's own files")
    assert tree(folder) == whole


def test_a_folder_goes_into_another_with_its_graphs(run, folder, whole, tmp_path):
    before = tree(folder)
    assert run("export", folder, "-o", tmp_path / "out")[0] == 0
    assert tree(tmp_path / "out") == whole
    assert tree(folder) == before
    # Into itself, by another name.
    assert run("export", folder, "-o", f"{folder}/../{folder.name}")[0] == 0
    assert tree(folder) == whole


def test_a_subfolder_gets_its_graphs(run, folder, whole, tmp_path):
    shutil.copytree(folder, tmp_path / "many" / "one" / "deep")
    assert run("export", tmp_path / "many", "--subfolder", "one/deep")[0] == 0
    assert tree(tmp_path / "many") == {f"one/deep/{path}": content for path, content in whole.items()}


def test_an_image_size_of_the_command_is_that_of_the_graphs(run, folder):
    assert run("export", folder, "--image-size", 16)[0] == 0
    assert_equals_torch(folder, {2: torch.randn(2, 3, 16, 16)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "tflite"), "'tflite' is not a format that is exported"),
        (("--image-size", "0"), "--image-size"),
        (("--image-size", "x"), "--image-size"),
    ],
)
def test_wrong_options_end_with_status_2(run, folder, options, message):
    before = tree(folder)
    code, _, err = run("export", folder, *options)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert tree(folder) == before


def test_what_cannot_be_exported_ends_with_one_line(run, copied, folder, tmp_path):
    code, _, err = run("export", copied("vit"), "--image-size", 32)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("pwl-hf: the networks do not take images of 32 x 32 pixels")
    code, _, err = run("export", tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "index.json").write_text("mine")
    code, _, err = run("export", folder)
    assert (code, err.count("\n")) == (1, 1)
    assert "onnx/index.json" in err


# --- The Hub ---------------------------------------------------------------------------------------------------------


def test_a_repository_of_the_hub_gets_them_in_one_commit_and_no_weight_is_sent(run, hub, pushed, whole):
    count = len(hub.store.commits(pushed))
    with hub.record() as requests:
        code, out, err = run("export", pushed)
    assert (code, err) == (0, "")
    assert pushed in out.splitlines()[-1]
    assert files(hub, pushed) == whole
    first, *earlier = hub.store.commits(pushed)
    assert len(earlier) == count
    assert first.title == "Add ONNX graphs"
    assert not weights_sent(requests)
    # Once more: the same bytes are no new commit, or one that changes nothing.
    assert run("export", pushed)[0] == 0
    assert files(hub, pushed) == whole


def test_a_repository_of_the_hub_goes_into_a_folder_and_stays_as_it_is(run, hub, pushed, whole, tmp_path):
    before = hub.store.head(pushed)
    assert run("export", pushed, "-o", tmp_path / "out")[0] == 0
    assert hub.store.head(pushed) == before
    assert tree(tmp_path / "out") == whole


def test_a_pull_request_is_opened_if_asked_for(run, hub, pushed, whole):
    before = hub.store.head(pushed)
    code, out, _ = run("export", pushed, "--create-pr", "-m", "Graphs, please")
    assert code == 0
    assert "/discussions/1" in out
    assert hub.store.head(pushed) == before
    assert files(hub, pushed, "refs/pr/1") == whole
    assert hub.store.commits(pushed, "refs/pr/1")[0].title == "Graphs, please"


def test_a_branch_gets_the_graphs_of_its_own_weights(run, hub, pushed, tmp_path, whole):
    model = odd_model()
    with torch.no_grad():
        model.student.classifier.bias.add_(1)
    model.push_to_hub(pushed, revision="dev")
    before = hub.store.head(pushed)
    assert run("export", pushed, "--revision", "dev")[0] == 0
    assert hub.store.head(pushed) == before
    found = files(hub, pushed, "dev")
    assert found.keys() - {"README.md"} == whole.keys()
    assert found["onnx/student.onnx"] == whole["onnx/student.onnx"]
    assert found[INDEX_FILE] != whole[INDEX_FILE]
    assert load(pushed, revision="dev", stage=2).stage == 2


def test_a_subfolder_of_the_hub_gets_its_graphs(run, hub, repo_id, folder, whole):
    publish(hub, repo_id, folder, "one")
    assert run("export", repo_id, "--subfolder", "one")[0] == 0
    assert files(hub, repo_id) == {f"one/{path}": content for path, content in whole.items()}


def test_a_branch_that_moved_meanwhile_keeps_what_it_got(run, hub, pushed, monkeypatch):
    from pwl_hf import exporting

    real = exporting.push_attachments

    def late(*arguments):
        hub.store.commit(pushed, {"notes.txt": b"of another"})
        return real(*arguments)

    monkeypatch.setattr(exporting, "push_attachments", late)
    code, _, err = run("export", pushed)
    assert code == 1
    assert "Traceback" not in err
    assert hub.store.commits(pushed)[0].title == "commit"
    found = files(hub, pushed)
    assert found["notes.txt"] == b"of another"
    assert not [path for path in found if path.endswith(".onnx")]
    monkeypatch.undo()


def test_files_of_others_at_these_paths_are_not_written_over(run, hub, pushed):
    hub.store.commit(pushed, {"onnx/student.onnx": b"of another", "onnx/model.onnx": b"of another"})
    before = hub.store.head(pushed)
    code, _, err = run("export", pushed)
    assert code == 1
    assert "holds onnx/student.onnx, which its pwl_index.json does not list: move it away" in err
    assert hub.store.head(pushed) == before


# Further on graphs are but bytes.
GRAPHS = {"onnx/student.onnx": b"a graph", INDEX_FILE: b"{}", "onnx/old.onnx": b"an old one"}


def attach(repo_id, contents, **options):
    retry = RetryPolicy(tries=2, first_wait=0.0)
    return push_attachments(Repository.open(repo_id), contents, Target(repo_id, "Attach", retry=retry, **options))


def attached(hub, repo_id):
    return {entry.path for entry in Manifest.from_json(files(hub, repo_id)["pwl_index.json"]).attachments}


def test_attachments_that_are_no_more_go_in_the_same_commit(hub, pushed):
    attach(pushed, GRAPHS)
    hub.store.commit(pushed, {"onnx/mine.onnx": b"of another"})
    count = len(hub.store.commits(pushed))
    attach(pushed, {"onnx/student.onnx": b"a graph", INDEX_FILE: b"{}"})
    assert len(hub.store.commits(pushed)) == count + 1
    assert attached(hub, pushed) == {"onnx/student.onnx", INDEX_FILE}
    assert {path for path in files(hub, pushed) if path.startswith("onnx/")} == attached(hub, pushed) | {
        "onnx/mine.onnx"
    }


def test_an_attachment_that_somebody_deleted_is_no_reason_to_fail(hub, pushed):
    attach(pushed, GRAPHS)
    hub.store.commit(pushed, deletions=["onnx/old.onnx"])
    attach(pushed, {"onnx/student.onnx": b"another"})
    assert attached(hub, pushed) == {"onnx/student.onnx"}


@pytest.mark.parametrize("path", ["../a.onnx", "config.json", "a.py", "model.safetensors"])
def test_what_cannot_be_attached_is_refused(hub, pushed, path):
    before = hub.store.head(pushed)
    with pytest.raises(RepositoryError):
        attach(pushed, {path: b""})
    assert hub.store.head(pushed) == before


def test_a_fault_that_passes_is_borne(hub, pushed):
    with hub.faulty(Fault("status", "/commit/", method="POST", status=503)):
        attach(pushed, GRAPHS)
    assert attached(hub, pushed) == GRAPHS.keys()


def test_a_fault_that_lasts_is_told(hub, pushed):
    before = hub.store.head(pushed)
    with (
        hub.faulty(Fault("status", "/commit/", method="POST", status=503, times=None)),
        pytest.raises(PublishError, match="the network or the Hub failed in every try"),
    ):
        attach(pushed, GRAPHS)
    assert hub.store.head(pushed) == before


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_lost_answer_is_told_and_nothing_is_done_twice(hub, pushed, create_pr):
    count = len(hub.store.commits(pushed))
    with (
        hub.faulty(Fault("close", "/commit/", method="POST")),
        pytest.raises(PublishError, match="answer about the commit was lost; look there whether it was made"),
    ):
        attach(pushed, GRAPHS, create_pr=create_pr)
    assert len(hub.store.commits(pushed)) <= count + (not create_pr)
    if create_pr:
        with pytest.raises(Exception, match="refs/pr/2"):
            hub.store.head(pushed, "refs/pr/2")


def test_no_right_to_write_is_told(hub, pushed, other_token):
    before = hub.store.head(pushed)
    with pytest.raises(HfHubHTTPError):
        push_attachments(Repository.open(pushed), GRAPHS, Target(pushed, token=other_token))
    assert hub.store.head(pushed) == before


def test_a_commit_that_was_passed_by_is_refused(hub, pushed):
    source = Repository.open(pushed)
    hub.store.commit(pushed, {"notes.txt": b"of another"})
    with pytest.raises(HfHubHTTPError):
        push_attachments(source, GRAPHS, Target(pushed))
    assert attached(hub, pushed) == set()


def test_files_of_others_are_looked_for_at_the_commit_that_was_read(hub, repo_id, folder):
    publish(hub, repo_id, folder, "one")
    hub.store.commit(repo_id, {"onnx/student.onnx": b"of another"})
    source = Repository.open(repo_id, subfolder="one")
    push_attachments(source, GRAPHS, Target(repo_id))
    assert files(hub, repo_id)["onnx/student.onnx"] == b"of another"
    assert files(hub, repo_id)["one/onnx/student.onnx"] == b"a graph"
    hub.store.commit(repo_id, {"one/onnx/new.onnx": b"of another"})
    with pytest.raises(OverwriteError, match=r"onnx/new\.onnx"):
        push_attachments(Repository.open(repo_id, subfolder="one"), {"onnx/new.onnx": b""}, Target(repo_id))


# --- With push -------------------------------------------------------------------------------------------------------


def test_a_push_of_the_folder_sends_graphs_with_the_rest_in_one_commit(run, hub, repo_id, folder, whole):
    assert run("export", folder)[0] == 0
    code, _, err = run("push", folder, repo_id)
    assert code == 0, err
    assert len(hub.store.commits(repo_id)) == 2
    found = files(hub, repo_id)
    assert {path: found[path] for path in whole} == whole


def test_graphs_go_with_a_model_and_not_on_with_other_weights(run, hub, pushed, repo_id, whole, tmp_path):
    assert run("export", pushed)[0] == 0
    model = load(pushed, keep_all=True)
    model.save_pretrained(tmp_path / "back")
    assert tree(tmp_path / "back") == whole
    other = f"{repo_id}-other"
    model.push_to_hub(other)
    assert {path for path in files(hub, other) if "onnx" in path} == {path for path in whole if "onnx" in path}
    with torch.no_grad():
        model.teacher.classifier.bias.add_(1)
    model.push_to_hub(pushed)
    assert not [path for path in files(hub, pushed) if path.endswith(".onnx") or path == INDEX_FILE]
    write_attachments(tmp_path / "back", {})
    assert not list((tmp_path / "back").rglob("*.onnx"))
