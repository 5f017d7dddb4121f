"""A file is hashed once, over processes, and again as soon as it may be another."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pwl_hf import RepositoryError
from pwl_hf.modeling.repository import verification
from pwl_hf.modeling.repository.manifest import FileEntry
from pwl_hf.modeling.repository.verification import check_file, is_as_named, stamp_of
from tests.repository.helpers import INDEX, STUDENT, encoder, load, logits, publish, shard
from tests.tiny import tiny_model

# Checks a file in another process, and prints how often it was hashed.
CHECK = """
import sys
from pathlib import Path
from huggingface_hub import constants
from pwl_hf.modeling.repository import verification
from pwl_hf.modeling.repository.manifest import FileEntry

home, file, digest, times = sys.argv[1:]
constants.HF_HOME = home
hashed, real = [], verification.sha256_of
verification.sha256_of = lambda local: hashed.append(local) or real(local)
for _ in range(int(times)):
    verification.check_file(Path(file), FileEntry("w", Path(file).stat().st_size, digest, 0), "here")
print(len(hashed))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An HF_HOME of its own, so that nothing is remembered."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    found: list[Path] = []

    def spy(local: Path, real=verification.sha256_of) -> str:
        found.append(local)
        return real(local)

    monkeypatch.setattr(verification, "sha256_of", spy)
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"right" * 100)
    return path


def entry_of(file: Path) -> FileEntry:
    content = file.read_bytes()
    return FileEntry("weights.safetensors", len(content), hashlib.sha256(content).hexdigest(), 0)


def notes(home: Path) -> list[Path]:
    return sorted((home / "pwl" / "verified").glob("*"))


def change_in_place(file: Path) -> None:
    """Another content of the same size, with the times of before, as far as a program can restore them."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"wrong")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def test_second_check_hashes_nothing(home, hashed, file):
    first = check_file(file, entry_of(file), "here")
    assert check_file(file, entry_of(file), "here") == first == stamp_of(file)
    assert len(hashed) == 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no advice")
def test_file_that_is_remembered_begins_to_be_read_at_once(home, file, monkeypatch):
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *advice: advised.append(advice))
    check_file(file, entry_of(file), "here")
    assert not advised  # Hashing has read it.
    check_file(file, entry_of(file), "here")
    assert advised == [(0, 0, os.POSIX_FADV_WILLNEED)]
    monkeypatch.delattr(os, "posix_fadvise")
    check_file(file, entry_of(file), "here")


def test_each_file_is_hashed_once_over_loads(home, hashed, pushed, cache):
    load(pushed, cache_dir=cache)
    assert len(hashed) == 1
    load(pushed, cache_dir=cache, stage=2)
    # Two shards, one converter, statistics.
    assert len(hashed) == 5
    load(pushed, cache_dir=cache, stage=2).set_stage(0)
    assert len(hashed) == 5


def test_nothing_is_remembered_over_a_start_of_the_system(home, hashed, file, tmp_path, monkeypatch):
    """After a loss of power the file may not be what was read: it had not reached the disk, and the note had."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(verification, "_BOOT_ID", boot)
    for start, times in (("first", 1), ("second", 2), ("second", 2)):
        boot.write_text(f"{start}\n")
        check_file(file, entry_of(file), "here")
        check_file(file, entry_of(file), "here")
        assert len(hashed) == times


def test_nothing_is_remembered_where_starts_cannot_be_told_apart(home, hashed, file, tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "_BOOT_ID", tmp_path / "missing")
    check_file(file, entry_of(file), "here")
    check_file(file, entry_of(file), "here")
    assert (len(hashed), notes(home)) == (2, [])


def check_elsewhere(home: Path, file: Path, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHECK, str(home), str(file), entry_of(file).sha256, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_each_file_is_hashed_once_over_processes(home, file):
    assert [check_elsewhere(home, file, 2).communicate()[0] for _ in range(3)] == ["1\n", "0\n", "0\n"]
    change_in_place(file)
    assert check_elsewhere(home, file, 2).communicate()[0] == "1\n"


def test_change_in_place_with_restored_times_is_found(home, hashed, file):
    entry = entry_of(file)
    check_file(file, entry, "here")
    change_in_place(file)
    with pytest.raises(RepositoryError, match=r"here: 'weights.safetensors' has sha256 .* corrupt or of another"):
        check_file(file, entry, "here")


def test_change_in_place_right_after_writing_is_found(home, file):
    # Within one tick of the file system's clock the two states have the same times.
    for _ in range(20):
        file.write_bytes(b"right" * 100)
        entry = entry_of(file)
        check_file(file, entry, "here")
        change_in_place(file)
        with pytest.raises(RepositoryError, match="has sha256"):
            check_file(file, entry, "here")


def test_change_in_place_of_a_loaded_folder_is_found_when_a_stage_is_read_again(home, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "copy")
    model = load(folder)
    model.load_next_stage()
    model.set_stage(0)
    target = folder / shard(1)
    before = target.stat()
    content = target.read_bytes()
    with target.open("r+b") as opened:
        opened.seek(len(content) - 1)
        opened.write(bytes([content[-1] ^ 1]))
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    expected = logits(model)
    with pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
        model.load_next_stage()
    assert model.stage == 0
    assert torch.equal(logits(model), expected)


def test_replaced_and_moved_files_are_hashed_again(home, hashed, file, tmp_path):
    entry = entry_of(file)
    check_file(file, entry, "here")
    shutil.copy2(file, tmp_path / "copy")
    os.replace(tmp_path / "copy", file)
    check_file(file, entry, "here")
    assert len(hashed) == 2
    os.rename(file, tmp_path / "moved")
    check_file(tmp_path / "moved", entry, "here")
    assert len(hashed) == 3


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + text,
        lambda text: text.replace(" ", "  "),
        lambda text: "0" * 64 + text[64:],
        lambda text: text[:65] + "0" + text[65:],
        lambda text: "\ufffd\x00" * 40,
    ],
)
def test_note_that_was_tampered_with_counts_for_nothing(home, hashed, file, forge):
    check_file(file, entry_of(file), "here")
    [note] = notes(home)
    note.write_text(forge(note.read_text()), encoding="utf-8")
    check_file(file, entry_of(file), "here")
    assert len(hashed) == 2
    assert note.read_text() == notes(home)[0].read_text()


def test_note_of_another_file_counts_for_nothing(home, hashed, file, tmp_path):
    # A corrupt file beside a right one, under whose note its own is forged.
    right, wrong = file, tmp_path / "corrupt"
    wrong.write_bytes(b"wrong" * 100)
    check_file(right, entry_of(right), "here")
    [note] = notes(home)
    check_file(wrong, entry_of(wrong), "here")
    [other] = [found for found in notes(home) if found != note]
    other.write_bytes(note.read_bytes())
    with pytest.raises(RepositoryError, match="has sha256"):
        check_file(wrong, entry_of(right), "here")


def test_removed_notes_only_cost_another_hash(home, hashed, file):
    check_file(file, entry_of(file), "here")
    shutil.rmtree(home)
    check_file(file, entry_of(file), "here")
    assert len(hashed) == 2


@pytest.mark.parametrize("obstacle", ["a file", "a folder in place of the note", "no rights"])
def test_home_that_cannot_be_written_to_falls_back_to_hashing(home, hashed, file, obstacle, monkeypatch):
    if obstacle == "a file":
        home.write_text("not a folder")
    elif obstacle == "a folder in place of the note":
        check_file(file, entry_of(file), "here")
        [note] = notes(home)
        note.unlink()
        note.mkdir()
        hashed.clear()
    else:

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        # Root may write anywhere: chmod would stop nobody here.
        monkeypatch.setattr(verification, "write_text", refuse)
    for _ in range(2):
        check_file(file, entry_of(file), "here")
    assert len(hashed) == 2
    file.write_bytes(b"wrong" * 100)
    with pytest.raises(RepositoryError, match="has sha256"):
        check_file(file, FileEntry("weights.safetensors", 500, "0" * 64, 0), "here")


def test_wrong_file_leaves_no_note(home, file):
    with pytest.raises(RepositoryError, match="has sha256"):
        check_file(file, FileEntry("weights.safetensors", 500, "0" * 64, 0), "here")
    assert notes(home) == []


def test_file_that_changes_while_it_is_hashed_leaves_no_note(home, file, monkeypatch):
    entry = entry_of(file)

    def slow(local: Path, real=verification.sha256_of) -> str:
        digest = real(local)
        change_in_place(local)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(verification, "sha256_of", slow)
        stamp = check_file(file, entry, "here")
    assert notes(home) == []
    # The stamp is that of the file that was hashed: whoever reads it sees that it is another now.
    assert stamp != stamp_of(file)
    with pytest.raises(RepositoryError, match="has sha256"):
        check_file(file, entry, "here")


def test_file_replaced_between_hashing_and_reading_is_never_read(home, saved, tmp_path, monkeypatch):
    folder, other = shutil.copytree(saved, tmp_path / "copy"), tmp_path / "other"
    tiny_model("resnet", seed=9).save_pretrained(other)
    model = load(folder)
    before = logits(model)

    def swap(local: Path, real=verification.sha256_of) -> str:
        digest = real(local)
        if local.name == Path(shard(1)).name and (other / shard(1)).exists():
            os.replace(other / shard(1), folder / shard(1))
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(verification, "sha256_of", swap)
        with pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
            model.load_next_stage()
    assert model.stage == 0
    assert torch.equal(logits(model), before)


def test_missing_file_is_a_repository_error(home, file):
    entry = entry_of(file)
    file.unlink()
    with pytest.raises(RepositoryError, match=r"'weights.safetensors' cannot be read: .*No such file"):
        check_file(file, entry, "here")


def test_processes_that_check_at_once_agree(home, file):
    running = [check_elsewhere(home, file, 300) for _ in range(3)]
    until = time.monotonic() + 60
    # Meanwhile the notes are removed again and again.
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        for note in notes(home):
            note.unlink(missing_ok=True)
        time.sleep(0.001)
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert not [note for note in notes(home) if note.name.endswith(".tmp")]


# --- The Hub's cache ------------------------------------------------------------------------------------------------


def test_etags_of_the_test_hub_are_gits_and_sha256_as_the_real_ones_are(hub, pushed, cache):
    load(pushed, cache_dir=cache, stage=1)
    cached = {path.name: path for path in cache.rglob("snapshots/**/*") if path.is_symlink()}
    config = cached["config.json"]
    command = ["git", "hash-object", "--no-filters", str(config)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert config.resolve().name == name
    student = cached[STUDENT]
    assert student.resolve().name == hashlib.sha256(student.read_bytes()).hexdigest()
    assert all(is_as_named(path) is True for path in cached.values())


@pytest.mark.parametrize("name", ["config.json", INDEX, STUDENT, Path(encoder(1)).name])
def test_changed_file_of_the_cache_is_not_as_named_and_is_mended(hub, pushed, cache, answers, name):
    load(pushed, cache_dir=cache, stage=1)
    [cached] = [path for path in cache.rglob("snapshots/**/*") if path.name == name]
    content = cached.read_bytes()
    cached.resolve().write_bytes(content[:-2] + b"?" + content[-1:])
    assert is_as_named(cached) is False
    assert torch.equal(logits(load(pushed, cache_dir=cache, stage=1)), answers[1])
    assert cached.read_bytes() == content


def test_cache_without_links_names_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert is_as_named(tmp_path / "config.json") is None


def test_name_is_that_of_the_first_link_where_blobs_are_shared(tmp_path):
    # huggingface_hub keeps what came through Xet once for all repositories, under another name of 64 digits.
    content = b"{}" * 9
    store, blob, pointer = tmp_path / ("e" * 64), tmp_path / hashlib.sha256(content).hexdigest(), tmp_path / "w"
    store.write_bytes(content)
    blob.symlink_to(store)
    pointer.symlink_to(blob)
    assert is_as_named(pointer) is True
    store.write_bytes(content[1:])
    assert is_as_named(pointer) is False


def test_file_that_is_as_the_hub_has_it_is_not_fetched_again(hub, pushed, cache, tmp_path):
    tiny_model("resnet", seed=9).save_pretrained(tmp_path / "other")
    hub.store.commit(pushed, {shard(1): (tmp_path / "other" / shard(1)).read_bytes()})
    model = load(pushed, cache_dir=cache)
    with hub.record() as requests, pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
        model.load_next_stage()
    assert [r.file for r in requests if r.method == "GET"].count(shard(1)) == 1
    with hub.record() as requests, pytest.raises(RepositoryError, match=f"'{shard(1)}' has sha256"):
        model.load_next_stage()
    # Only asked whether the Hub has another one by now.
    assert requests
    assert {r.method for r in requests} == {"HEAD"}


# --- Files that do not belong together ------------------------------------------------------------------------------


def other_run(tmp_path: Path) -> Path:
    """Another training run of the same networks: every file has the right size."""
    tiny_model("resnet", seed=9).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_config_of_one_save_and_manifest_of_another_do_not_mix(hub, repo_id, saved, tmp_path, cache):
    folder, other = shutil.copytree(saved, tmp_path / "copy"), other_run(tmp_path)
    shutil.copy(other / "config.json", folder / "config.json")
    for source in (folder, repo_id):
        if source == repo_id:
            publish(hub, repo_id, folder)
        with pytest.raises(RepositoryError, match=r"config.json is of fingerprint .*different saves"):
            load(source, cache_dir=cache)


@pytest.mark.parametrize("path", [STUDENT, shard(1), encoder(1)])
def test_file_of_another_training_run_is_refused_though_its_size_is_right(saved, answers, tmp_path, path):
    folder, other = shutil.copytree(saved, tmp_path / "copy"), other_run(tmp_path)
    assert (folder / path).stat().st_size == (other / path).stat().st_size
    shutil.copy(other / path, folder / path)
    if path == STUDENT:
        with pytest.raises(RepositoryError, match=f"'{path}' has sha256"):
            load(folder)
        return
    model = load(folder)
    with pytest.raises(RepositoryError, match=f"'{path}' has sha256"):
        model.load_next_stage()
    assert torch.equal(logits(model), answers[0])


def test_manifest_entry_of_another_training_run_breaks_the_fingerprint(saved, tmp_path):
    folder, other = shutil.copytree(saved, tmp_path / "copy"), other_run(tmp_path)
    mine, theirs = (hashlib.sha256((root / shard(1)).read_bytes()).hexdigest() for root in (folder, other))
    (folder / INDEX).write_text((folder / INDEX).read_text().replace(mine, theirs))
    shutil.copy(other / shard(1), folder / shard(1))
    with pytest.raises(RepositoryError, match=r"its fingerprint .* is not that of the files it lists"):
        load(folder)
