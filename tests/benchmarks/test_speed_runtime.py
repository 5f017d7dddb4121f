"""What the measures of the runtime are made of: processes without torch, plain sessions, and what is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import pairs as pairs_module
from benchmarks.speed.child import Task
from benchmarks.speed.hub import PWL, environment, serving_pair
from benchmarks.speed.installed import installed_bytes, required
from benchmarks.speed.launching import RUNTIME_CLASS, SESSION_CLASS, fresh_from_empty_cache, in_turn
from benchmarks.speed.pairs import with_graphs
from benchmarks.speed.peers import CHECKOUT, running
from benchmarks.speed.without_torch import Runtime, TeacherSession
from pwl_hf import PWLForImageClassification

STUDENT_FILES = {"pwl_index.json", "onnx/index.json", "onnx/student.onnx", "model.safetensors"}


def task(network: str, source: str | Path, way: str = "first") -> Task:
    return Task(network, str(source), 32, way, arrays="numpy")


def test_process_of_the_runtime_imports_no_more_than_a_user_of_it(tiny, tmp_path):
    given = task(RUNTIME_CLASS, tiny.exported().resolve()).as_json()
    code = (
        "import json, sys; from benchmarks.speed.child import Marks, Task, perform; "
        "perform(Task(**json.loads(sys.argv[1])), Marks(0.0)); "
        "print({'torch', 'transformers', 'PIL', 'onnx', 'httpx2'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT, env=environment(tmp_path))
    assert done.stdout.strip() == "set()"


def test_runtime_asks_the_hub_for_its_student_alone_and_then_for_its_stages(tiny, tmp_path):
    tiny.exported()
    with serving_pair(tiny, latency=0.0) as hub:
        first = fresh_from_empty_cache(tiny.data, hub, task(RUNTIME_CLASS, PWL))
        assert {asked.file for asked in hub.take() if asked.file} == STUDENT_FILES
        whole = fresh_from_empty_cache(tiny.data, hub, task(RUNTIME_CLASS, PWL, "stream"))
        files = {asked.file for asked in hub.take() if asked.file}
    assert {"onnx/tail-TS.onnx", "onnx/teacher-00002.onnx"} | STUDENT_FILES < files
    assert "teacher/model.onnx" not in files
    assert 0 < first.marks["began"] < first.marks["imported"] < first.marks["loaded"] < first.marks["answered"]
    assert first.marks["answered"] <= first.seconds
    assert (len(first.stages), len(whole.stages)) == (1, 3)
    assert 20e6 < first.resident < whole.resident + 20e6


def test_plain_session_is_of_the_teacher_and_asks_the_hub_for_nothing_else(tiny):
    with serving_pair(tiny, latency=0.0) as hub:
        tiny.exported()
        fresh_from_empty_cache(tiny.data, hub, task(SESSION_CLASS, PWL))
        files = {asked.file for asked in hub.take() if asked.file}
    assert {name for name in files if name.endswith(".onnx")} == {"teacher/model.onnx"}
    assert {Path(name).parent.name for name in files} == {"teacher"}
    folder, pixel_values = tiny.exported(), tiny.pair.pixel_values()
    found = TeacherSession.from_pretrained(str(folder))(pixel_values.numpy()).logits
    expected = PWLForImageClassification.from_pretrained(folder, stage="teacher")(pixel_values).logits
    assert np.allclose(found, expected.detach().numpy(), atol=1e-5)
    model = Runtime.from_pretrained(str(folder))
    assert not np.array_equal(model(pixel_values.numpy()).logits, found)
    assert [model.load_next_stage() for _ in range(model.num_stages)] == [1, 2]
    assert np.array_equal(model(pixel_values.numpy()).logits, found)


def test_graphs_are_made_once(tiny, monkeypatch):
    folder = tiny.exported()
    monkeypatch.setattr(pairs_module, "export_repository", lambda *_, **__: pytest.fail("exported again"))
    assert with_graphs(folder) == folder


def test_things_take_turns():
    calls: list[str] = []
    runs = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert runs == {"a": [None, None], "b": [None, None]}


def test_imports_are_timed_in_a_process_that_has_nothing_yet(tmp_path):
    with running("benchmarks.speed.imports", ["xml.dom.minidom", "decimal"], environment(tmp_path)) as peer:
        assert 0 < peer.hear() < 60
    missing = running("benchmarks.speed.imports", ["no_such_module"], environment(tmp_path))
    with missing as peer, pytest.raises(RuntimeError, match="ended with code 1"):
        peer.hear()


# --- What is installed ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder of installed distributions: top requires left, and right by an extra; both require base in turn."""
    monkeypatch.syspath_prepend(str(tmp_path))
    requires = {
        "pwl-top": ["pwl-left", "Pwl_Right[more]; extra == 'own'", "absent; python_version < '3'"],
        "pwl-left": ["pwl-base"],
        "pwl-right": ["pwl-base", "pwl-more; extra == 'more'", "absent; extra == 'other'"],
        "pwl-base": ["pwl-left", "pwl-top"],
        "pwl-more": [],
        "pwl-broken": ["absent"],
    }
    for name, lines in requires.items():
        module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
        (tmp_path / info).mkdir()
        head = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", "Provides-Extra: own"]
        metadata = "\n".join([*head, *(f"Requires-Dist: {line}" for line in lines)])
        (tmp_path / info / "METADATA").write_text(metadata)
        (tmp_path / f"{module}.py").write_bytes(b"#" * 1000)
        (tmp_path / f"{module}.pyc").write_bytes(b"#" * 5000)
        rows = [f"{module}.py", f"{module}.py", f"{module}.pyc", f"{info}/METADATA", "../gone.py"]
        (tmp_path / info / "RECORD").write_text("".join(f"{row},,\n" for row in rows))
    return tmp_path


def test_what_is_required_is_followed_through_extras_and_circles(site):
    assert list(required("pwl-top")) == ["pwl-base", "pwl-left"]
    assert list(required("pwl-top", "own")) == ["pwl-base", "pwl-left", "pwl-more", "pwl-right"]
    with pytest.raises(PackageNotFoundError, match="absent"):
        required("pwl-broken")


def test_size_is_of_each_file_that_is_listed_and_there_without_bytecode(site):
    metadata = (site / "pwl_left-1.0.dist-info" / "METADATA").stat().st_size
    assert installed_bytes(distribution("pwl-left")) == 1000 + metadata
    (site / "pwl_left-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(ValueError, match="pwl-left is installed without a list of its files"):
        installed_bytes(distribution("pwl-left"))


def test_runtime_requires_neither_torch_nor_transformers():
    assert {"numpy", "onnxruntime", "pillow", "huggingface-hub"} <= set(required("pwl-hf", "runtime"))
    assert not {"torch", "transformers", "onnx"} & set(required("pwl-hf", "runtime"))
    assert {"torch", "transformers"} <= set(required("pwl-hf", "torch"))
