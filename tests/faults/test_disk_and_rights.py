"""A disk that fills up, a cache that is read-only, rights that are lost: said clearly, with the model intact."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from pwl_hf import FetchError, RepositoryError, SaveError
from pwl_hf.modeling.parts.planning import FileContents, PlannedFile
from pwl_hf.modeling.publishing import saving
from tests.hub import Fault
from tests.repository.helpers import INDEX, contents, load, logits, shard, tree
from tests.tiny import tiny_model

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def is_at(model, stage: int, answers) -> None:
    assert model.stage == stage
    assert torch.equal(logits(model), answers[stage])


def assert_asked_once_each(requests) -> None:
    """Of a stage's files, none twice; once one has failed, the others may not be asked for at all."""
    asked = [(request.method, request.path) for request in requests]
    assert asked
    assert len(set(asked)) == len(asked)


class FailingFrom:
    """Calls through, until the n-th call; from then on it fails, as a full disk does."""

    def __init__(self, real, n: int, error: Exception) -> None:
        self.real, self.left, self.error = real, n, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.real(*args, **kwargs)


# --- Downloading ----------------------------------------------------------------------------------------------------


def test_disk_full_while_downloading_leaves_the_model_and_goes_on_when_there_is_room(
    hub, pushed, cache, answers, quick, monkeypatch
):
    model = load(pushed, cache_dir=cache, retry=quick)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", FailingFrom(None, 0, FULL))
        with (
            hub.record() as requests,
            pytest.raises(FetchError, match=f"'{shard(1)}' could not be fetched: the disk of the cache is full") as e,
        ):
            model.load_next_stage()
    assert f"{pushed}@{hub.store.head(pushed)}" in str(e.value)
    # Asked for once: another try would not make room.
    assert_asked_once_each(requests)
    is_at(model, 0, answers)
    assert not list(cache.rglob("*.incomplete"))
    model.load_next_stage()
    is_at(model, 1, answers)


def test_disk_full_in_the_middle_of_a_file_keeps_no_part_of_it(hub, pushed, cache, answers, quick, monkeypatch):
    model = load(pushed, cache_dir=cache, retry=quick)
    before = tree(cache)

    def half(url, temp_file, **_) -> None:
        temp_file.write(b"x" * 1000)
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", half)
        with pytest.raises(FetchError, match="make room or give another cache_dir"):
            model.load_next_stage()
    is_at(model, 0, answers)
    left = {path for path in set(tree(cache)) - set(before) if "/.locks/" not in f"/{path}"}
    assert not [path for path in left if (cache / path).stat().st_size]


@pytest.mark.parametrize(
    ("text", "advice", "tries"),
    [
        ("Task error: CAS Client Error", "the network or the Hub failed in every try; call again later", 2),
        ("Task error: IO Error: No space left on device (os error 28)", "the disk of the cache is full", 1),
        ("Task error: IO Error: Read-only file system (os error 30)", "the cache may not be written to", 1),
    ],
)
def test_runtime_error_that_xet_raises_is_explained_and_tried_again_if_it_may_pass(
    hub, pushed, cache, answers, quick, monkeypatch, text, advice, tries
):
    model = load(pushed, cache_dir=cache, retry=quick)
    calls = []

    def fail(url: str, *_, **__) -> None:
        calls.append(url)
        raise RuntimeError(text)

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", fail)
        with pytest.raises(FetchError, match=f"'{shard(1)}' could not be fetched: {advice}.*Task error"):
            model.load_next_stage()
    assert len([url for url in calls if url.endswith(shard(1))]) == tries
    is_at(model, 0, answers)
    model.load_next_stage()
    is_at(model, 1, answers)


@pytest.mark.parametrize("error", [READ_ONLY, PermissionError(errno.EACCES, "Permission denied")])
def test_read_only_cache_serves_what_it_has_and_says_so_for_the_rest(
    hub, pushed, cache, answers, quick, monkeypatch, error
):
    load(pushed, cache_dir=cache, stage=1)
    # Root may write anywhere, so chmod would not do: nothing can be made in the cache.
    real_open, real_mkdir = Path.open, os.mkdir

    def refuse_open(self, mode="r", *args, **kwargs):
        if set(mode) & set("wax+") and cache in self.parents:
            raise error
        return real_open(self, mode, *args, **kwargs)

    def refuse_mkdir(path, *args, **kwargs):
        if cache in Path(path).parents:
            raise error
        return real_mkdir(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse_open)
        patch.setattr(os, "mkdir", refuse_mkdir)
        model = load(pushed, cache_dir=cache, retry=quick, stage=1)
        is_at(model, 1, answers)
        with pytest.raises(FetchError, match="the cache may not be written to; give another cache_dir"):
            model.load_next_stage()
        is_at(model, 1, answers)
    model.load_next_stage()
    is_at(model, 2, answers)


# --- Rights ---------------------------------------------------------------------------------------------------------


def gate(hub, repo_id: str) -> None:
    hub.store.set_gated(repo_id)


def hide(hub, repo_id: str) -> None:
    hub.store.set_private(repo_id)


def delete(hub, repo_id: str) -> None:
    hub.store.delete_repo(repo_id)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (gate, "the repository is gated; ask for access on its page, and give a token that has it"),
        (hide, "the repository is gone, or the token may no longer read it"),
        (delete, "the repository is gone, or the token may no longer read it"),
    ],
)
def test_repository_closed_between_stages_is_said_at_once_and_the_model_keeps_answering(
    hub, pushed, cache, answers, quick, other_token, change, advice
):
    model = load(pushed, cache_dir=cache, retry=quick, token=other_token)
    commit = hub.store.head(pushed)
    change(hub, pushed)
    with hub.record() as requests, pytest.raises(FetchError, match=advice) as failed:
        model.load_next_stage()
    assert f"{pushed}@{commit}" in str(failed.value)
    assert f"'{shard(1)}'" in str(failed.value)
    assert_asked_once_each(requests)
    is_at(model, 0, answers)
    if change is delete:
        return
    hub.store.set_gated(pushed, False)
    hub.store.set_private(pushed, False)
    model.load_next_stage()
    is_at(model, 1, answers)


@pytest.mark.parametrize("status", [401, 403])
def test_token_that_lost_its_rights_is_said_and_not_called_a_failing_network(
    hub, pushed, cache, answers, quick, status
):
    model = load(pushed, cache_dir=cache, retry=quick)
    with (
        hub.faulty(Fault("status", method="HEAD", status=status, times=None)),
        hub.record() as requests,
        pytest.raises(FetchError, match=f"the token may not read it; log in again or give another.*{status}"),
    ):
        model.load_next_stage()
    assert_asked_once_each(requests)
    is_at(model, 0, answers)


def test_unknown_token_between_stages_is_said(hub, pushed, cache, answers, quick):
    model = load(pushed, cache_dir=cache, retry=quick, token="hf_tester")
    name = hub.access.users.pop("hf_tester")
    try:
        with pytest.raises(FetchError, match="the token may not read it"):
            model.load_next_stage()
    finally:
        hub.access.users["hf_tester"] = name
    is_at(model, 0, answers)
    model.load_next_stage()
    is_at(model, 1, answers)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (gate, FetchError, f"'{INDEX}' could not be fetched: the repository is gated; ask for access on its page"),
        (hide, RepositoryNotFoundError, "Repository Not Found"),
        (delete, RepositoryNotFoundError, "Repository Not Found"),
    ],
)
def test_first_load_of_a_closed_repository_says_so_at_once(
    hub, pushed, cache, quick, other_token, change, error, match
):
    change(hub, pushed)
    with hub.record() as requests, pytest.raises(error, match=match):
        load(pushed, cache_dir=cache, retry=quick, token=other_token)
    assert len(requests) <= 2


def test_forced_download_without_an_answer_is_explained(hub, pushed, cache, quick, unhurried_client):
    load(pushed, cache_dir=cache)
    # huggingface_hub's own word for it is "ValueError: Force download failed due to the above error."
    hub.faults.append(Fault("status", path="/resolve/", method="HEAD", status=503, times=None))
    with pytest.raises(FetchError, match=f"'{INDEX}' could not be fetched: .* call again later.*503"):
        load(pushed, cache_dir=cache, retry=quick, force_download=True)


# --- Saving ---------------------------------------------------------------------------------------------------------

# Which function of ours writes, and after how many calls the disk is full.
WRITERS = [("save_file", 0), ("save_file", 3), ("copy_file", 0), ("copy_file", 5), ("write_text", 0), ("write_text", 3)]


@pytest.mark.parametrize(("writer", "n"), WRITERS)
@pytest.mark.parametrize(
    ("error", "advice"), [(FULL, "the disk is full; make room and save again"), (READ_ONLY, "may not be written to")]
)
def test_save_that_cannot_write_says_which_file_and_leaves_nothing_that_loads(
    saved, answers, tmp_path, monkeypatch, writer, n, error, advice
):
    # All resident files are made anew, or none.
    model = tiny_model("resnet") if writer == "save_file" else load(saved)
    before = logits(model)
    with monkeypatch.context() as patch:
        patch.setattr(saving, writer, FailingFrom(getattr(saving, writer), n, error))
        with pytest.raises(SaveError, match=advice) as failed:
            model.save_pretrained(tmp_path / "out")
    assert str(tmp_path / "out") in str(failed.value)
    assert not list((tmp_path / "out").rglob(".*"))
    with pytest.raises(RepositoryError, match=r"is not a PWL repository|is neither a folder"):
        load(tmp_path / "out")
    assert torch.equal(logits(model), before)
    model.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(load(tmp_path / "out")), before)


@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_save_over_another_repository_that_fails_leaves_it_old_or_refused(saved, answers, tmp_path, monkeypatch, n):
    folder = shutil.copytree(saved, tmp_path / "out")
    other = tiny_model("resnet", seed=9)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_file", FailingFrom(saving.save_file, n, FULL))
        with pytest.raises(SaveError, match="the disk is full"):
            other.save_pretrained(folder)
    for stage in range(5):
        try:
            model = load(folder, stage=stage)
        except RepositoryError:
            continue
        assert torch.equal(logits(model), answers[stage])
    if n == 0:
        assert contents(folder) == contents(saved)
    other.save_pretrained(folder)
    other.set_stage(4)
    assert torch.equal(logits(load(folder, stage=4)), logits(other))


def test_size_limit_of_the_system_is_a_save_error_that_names_the_file(tmp_path):
    # A real limit, in a process of its own: safetensors reports it in words only.
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import resource
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            torch.set_num_threads(1)
            try:
                planned = PlannedFile("w", 9999, None, lambda: FileContents({"a": torch.zeros(9999)}))
                saving.write_tensors(tmp_path / "w", planned)
            except SaveError as error:
                known = f"{tmp_path / 'w'} could not be written: the disk is full" in str(error)
                code = 0 if known and not list(tmp_path.iterdir()) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_save_into_a_folder_that_is_a_file_says_so(saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "teacher").write_text("in the way")
    with pytest.raises(SaveError, match=r"teacher is a file, and saving needs a folder of that name"):
        load(saved).save_pretrained(tmp_path / "out")
