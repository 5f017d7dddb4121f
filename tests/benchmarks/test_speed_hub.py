"""The Hub of the benchmarks: a process of its own, a line of a known width, and a count of what it was asked."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.speed.figures import Place
from benchmarks.speed.hub import PWL, STUDENT, TEACHER, Hub, serving, serving_pair, total_bytes
from benchmarks.speed.pairs import pairs
from benchmarks.speed.peers import CHECKOUT

SIZE = 600_000


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    (folder / "student").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(SIZE))
    (folder / "student" / "config.json").write_text("{}")
    return folder


def _get(hub: Hub, file: str, repo_id: str = "org/a") -> bytes:
    with urlopen(f"{hub.url}/{repo_id}/resolve/main/{file}") as answer:
        return answer.read()


def test_line_lets_no_more_through_than_it_is_wide(folder, tmp_path):
    with serving({"org/a": folder}, tmp_path / "hub", bandwidth=3e6, latency=0.05) as hub:
        for _ in range(2):
            start = time.monotonic()
            assert len(_get(hub, "model.safetensors")) == SIZE
            assert time.monotonic() - start >= 0.05 + SIZE / 3e6
            time.sleep(0.1)  # earns nothing


def test_line_can_be_changed_while_it_serves(folder, tmp_path):
    with serving({"org/a": folder}, tmp_path / "hub", bandwidth=1.0) as hub:
        hub.set_line(None, 0.0)
        assert len(_get(hub, "model.safetensors")) == SIZE


def test_requests_and_bytes_are_counted_since_they_were_taken(folder, tmp_path):
    with serving({"org/a": folder}, tmp_path / "hub") as hub:
        start = time.monotonic()
        _get(hub, "config.json")
        _get(hub, "model.safetensors")
        asked = hub.take()
        assert [(request.method, request.file, request.status) for request in asked] == [
            ("GET", "config.json", 200),
            ("GET", "model.safetensors", 200),
        ]
        assert total_bytes(asked) == SIZE + 2
        assert start <= asked[0].at <= asked[1].at <= time.monotonic()
        assert hub.take() == []


def test_repository_has_the_files_of_the_folder_without_the_student(folder, tmp_path):
    for content in (b"old", b"new"):
        (folder / "model.safetensors").write_bytes(content)
        with serving({"org/a": folder}, tmp_path / "hub", latency=0.0) as hub:
            assert _get(hub, "model.safetensors") == content
            with pytest.raises(OSError, match="404"):
                _get(hub, "student/config.json")
    (folder / "config.json").unlink()
    with serving({"org/a": folder}, tmp_path / "hub", latency=0.0) as hub, pytest.raises(OSError, match="404"):
        _get(hub, "config.json")


def test_process_ends_with_the_block_and_with_an_error_in_it(folder, tmp_path):
    processes = []
    with pytest.raises(ZeroDivisionError), serving({"org/a": folder}, tmp_path / "hub") as hub:
        processes.append(hub._peer.process) or 1 / 0
    assert [process.poll() for process in processes] == [0]


def test_hub_that_cannot_start_is_an_error_and_no_hang(folder):
    with pytest.raises(RuntimeError, match="ended with code 1"), serving({"org/a": folder}, folder / "config.json"):
        pass


def test_mistakes_of_the_hub_itself_do_not_pass_for_answers(folder, tmp_path):
    with serving({"org/a": folder}, tmp_path / "hub", latency=0.0) as hub:
        with pytest.raises(OSError, match="500"):
            urlopen(f"{hub.url}/api/repos/create", data=b"no JSON")
        with pytest.raises(RuntimeError, match="JSONDecodeError"):
            hub.take()


def test_pair_is_served_as_pwl_and_as_plain_networks(tmp_path):
    place = Place("tiny", pairs()["tiny"], tmp_path, repeats=2)
    with serving_pair(place, latency=0.0) as hub:
        folder = place.repository()
        assert _get(hub, "pwl_index.json", PWL) == (folder / "pwl_index.json").read_bytes()
        assert _get(hub, "model.safetensors", STUDENT) == (folder / "student" / "model.safetensors").read_bytes()
        whole = sum(path.stat().st_size for path in (folder / "teacher").glob("*.safetensors"))
        assert len(_get(hub, "model.safetensors", TEACHER)) == pytest.approx(whole, rel=0.1)


def test_clients_have_no_settings_of_their_callers(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with serving({"org/a": folder}, tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home")
    assert environment["HF_ENDPOINT"] == hub.url
    assert environment["HF_HOME"] == str(tmp_path / "home")
    assert not {"HF_TOKEN", "TRANSFORMERS_OFFLINE"} & set(environment)


def test_process_of_the_hub_is_light():
    code = "import benchmarks.speed.hub_process, sys; print({'torch', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "set()"
