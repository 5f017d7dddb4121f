"""docs/serving.md: its code runs, its links lead somewhere, and every fault of its table is seen as it says."""

from __future__ import annotations

import ast
import errno
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from pwl_hf import PublishError, PWLError, PWLForImageClassification, RetryPolicy, SaveError
from pwl_hf.modeling.publishing import saving
from pwl_hf.modeling.repository import fetching
from tests.children import python
from tests.hub import Fault
from tests.repository.helpers import edit_bytes, edit_json, load, publish, shard
from tests.serving.images import steps
from tests.tiny import tiny_images, tiny_model

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "serving.md"
TEXT = DOCS.read_text(encoding="utf-8")
SHARD = shard(2)

# What ends a stream for good, by row of the table; those that come once are borne by the same rows.
LASTING: dict[str, Callable[[], Fault]] = {
    "the same byte corrupted every time": lambda: Fault("corrupt", SHARD, times=None),
    "connection reset": lambda: Fault("reset", SHARD, after=1000, times=None),
    "5xx answers": lambda: Fault("status", SHARD, status=503, times=None),
    "file cut short": lambda: Fault("truncate", SHARD, times=None),
    "token that lost its rights": lambda: Fault("status", SHARD, status=403, times=None),
}
PASSING: dict[str, Callable[[], Fault]] = {
    "one corrupted byte on the way": lambda: Fault("corrupt", SHARD),
    "connection reset": lambda: Fault("reset", SHARD, after=1000),
    "connection closed early": lambda: Fault("close", SHARD, after=1000),
    "5xx answers": lambda: Fault("status", SHARD, status=503),
    "429, too many requests": lambda: Fault("status", SHARD, status=429, headers={"Retry-After": "1"}),
    "stalled connection": lambda: Fault("stall", SHARD, after=1000, seconds=0.5),
    "file cut short": lambda: Fault("truncate", SHARD),
}
DISK = {"disk full": errno.ENOSPC, "read-only cache": errno.EROFS}
OF_THE_REPOSITORY = ["gated repository", "deleted or hidden repository"]
OTHERWISE = [
    "offline, or `local_files_only=True`",
    "Hub out of reach at the start",
    "killed while saving",
    "files of two commits or trainings mixed",
    "disk full while saving",
    "network or Hub failing while pushing, its answer lost",
]
# Processes that are killed have tests of their own, beside those of streaming and of publishing; so have caches
# (tests/faults/test_cache_heals.py), and folders and those who save into them (tests/repository).
ELSEWHERE = [
    "killed while downloading",
    "killed while pushing",
    "a proxy that served another file for a while",
    "a link of another's in a shared cache",
    "two processes saving into one folder",
    "saving into a folder with other files",
]


def _rows() -> dict[str, list[str]]:
    """What is seen at each fault, as the texts in quotes."""
    table = TEXT.partition("## Faults")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ") and "---" not in line][1:]
    return {row[0].removeprefix("| "): re.findall(r'"([^"]+)"', row[1]) for row in rows}


ROWS = _rows()
# "else as above"
FAILED_IN_EVERY_TRY = ROWS["connection reset"]


@pytest.fixture
def streaming(hub, repo_id, repository, tmp_path, other_token):
    """A model at stage 0 of a repository that is somebody else's, with a cache of its own."""
    publish(hub, repo_id, repository)
    return PWLForImageClassification.from_pretrained(
        repo_id, cache_dir=tmp_path / "cache", token=other_token, retry=RetryPolicy(tries=2, first_wait=0.0)
    )


def _assert_seen(model: PWLForImageClassification, row: str, stage: int, folder: Path) -> None:
    """The stream fails as the table says, and the model answers at its stage, exactly."""
    stream = model.stream_stages()
    assert stream.wait(60)
    assert isinstance(stream.exception, PWLError)
    for quoted in ROWS[row] or FAILED_IN_EVERY_TRY:
        assert quoted in str(stream.exception)
    assert model.stage == stage
    images = tiny_images("vit")
    assert torch.equal(model(images).logits, load(folder, stage=stage)(images).logits)


def test_every_row_has_its_test():
    tested = {*LASTING, *PASSING, *DISK, *OF_THE_REPOSITORY, *OTHERWISE, *ELSEWHERE}
    assert tested == set(ROWS)


@pytest.mark.parametrize("row", PASSING)
def test_fault_that_passes_is_not_seen(hub, streaming, row):
    with hub.faulty(PASSING[row]()), streaming.stream_stages() as stream:
        pass
    assert stream.stage == 4
    assert [r.fault for r in hub.requests if r.fault]


@pytest.mark.parametrize("row", LASTING)
def test_lasting_fault_is_seen_as_the_table_says(hub, streaming, repository, row):
    with hub.faulty(LASTING[row]()):
        _assert_seen(streaming, row, 1, repository)
    streaming.stream_stages().wait()
    assert streaming.stage == 4


@pytest.mark.parametrize("row", DISK)
def test_fault_of_the_disk_is_seen_as_the_table_says(streaming, repository, monkeypatch, row):
    real = fetching.hf_hub_download

    def fail(repo_id, path, **kwargs):
        if path == SHARD:
            raise OSError(DISK[row], "no")
        return real(repo_id, path, **kwargs)

    monkeypatch.setattr(fetching, "hf_hub_download", fail)
    _assert_seen(streaming, row, 1, repository)


@pytest.mark.parametrize("row", OF_THE_REPOSITORY)
def test_fault_of_the_repository_is_seen_as_the_table_says(hub, repo_id, streaming, repository, row):
    if row == "gated repository":
        hub.store.set_gated(repo_id)
    else:
        hub.store.delete_repo(repo_id)
    _assert_seen(streaming, row, 0, repository)


def test_what_is_not_in_the_cache_is_not_asked_for_offline(hub, repo_id, streaming, repository, tmp_path):
    offline = load(repo_id, cache_dir=tmp_path / "cache", local_files_only=True)
    _assert_seen(offline, "offline, or `local_files_only=True`", 0, repository)


def test_hub_out_of_reach_at_the_start_is_seen_as_the_table_says(hub, repo_id, streaming, tmp_path):
    again, retry = {"cache_dir": tmp_path / "cache"}, RetryPolicy(tries=1)
    with hub.faulty(Fault("status", status=500, method="*", times=None)):
        assert load(repo_id, retry=retry, **again).stage == 0
        (quoted,) = ROWS["Hub out of reach at the start"]
        with pytest.raises(PWLError, match=quoted):
            load(repo_id, cache_dir=tmp_path / "empty", retry=retry)


def test_half_a_save_is_seen_as_the_table_says(repository, tmp_path):
    corrupt, truncated, mixed = ROWS["killed while saving"]
    assert mixed in ROWS["files of two commits or trainings mixed"][0]
    folder = shutil.copytree(repository, tmp_path / "folder")
    (folder / SHARD).write_bytes((repository / SHARD).read_bytes()[:-1] + b"x")
    _assert_seen_on_load(folder, corrupt)
    edit_bytes(folder, SHARD, lambda content: content[:-1], honest=False)
    _assert_seen_on_load(folder, truncated)
    (folder / "pwl_index.json").unlink()
    _assert_seen_on_load(folder, "is not a PWL repository")


def test_mixed_files_are_seen_as_the_table_says(repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "folder")
    edit_json(folder / "config.json", lambda config: config.update(fingerprint="0" * 64))
    (quoted,) = ROWS["files of two commits or trainings mixed"]
    _assert_seen_on_load(folder, quoted)


def test_full_disk_at_a_save_is_seen_as_the_table_says(tmp_path, monkeypatch):
    model = tiny_model("vit")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    (quoted,) = ROWS["disk full while saving"]
    with pytest.raises(SaveError, match=quoted):
        model.save_pretrained(tmp_path / "folder")


def test_faults_of_a_push_are_seen_as_the_table_says(hub, repo_id):
    model, row = tiny_model("vit"), "network or Hub failing while pushing, its answer lost"
    (quoted,) = ROWS[row]
    quick = RetryPolicy(tries=2, first_wait=0.0)
    with (
        hub.faulty(Fault("status", "/commit/", method="POST", status=503, times=None)),
        pytest.raises(PublishError, match=quoted),
    ):
        model.push_to_hub(repo_id, retry=quick)
    with hub.faulty(Fault("close", "/commit/", method="POST")):
        model.push_to_hub(repo_id, retry=quick)
    assert load(repo_id).stage == 0


def _assert_seen_on_load(folder: Path, quoted: str) -> None:
    with pytest.raises(PWLError, match=quoted):
        load(folder, stage="teacher")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def _printed(code: str, folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_download_before_the_imports_imports_neither_torch_nor_transformers(tmp_path, hub, repo_id):
    early, _ = _blocks("python")
    tiny_model("vit").push_to_hub(repo_id)
    code = early.replace("org/pwl-vit", repo_id) + (
        "import sys, threading\n"
        "[thread.join() for thread in threading.enumerate() if thread is not threading.main_thread()]\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    hub.clear_requests()
    assert _printed(code, tmp_path) == "set()\n"
    assert any(request.path.endswith("/model.safetensors") for request in hub.requests)


def test_python_block_prints_what_is_shown(tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "digits-pwl")
    (_, block), (shown,) = _blocks("python"), _blocks("text")
    done = python(block, cwd=tmp_path)
    assert done.stdout == shown, done.stderr


def test_commands_name_what_there_is():
    """Images are built in test_container.py and test_lambda.py, servers run in test_example.py and test_ray.py."""
    commands = [line.partition("  #")[0] for block in _blocks("bash") for line in block.splitlines()]
    settings = next(
        node
        for node in ast.parse((ROOT / "examples" / "ray_serve.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Settings"
    )
    known = {ast.unparse(field.target) for field in settings.body if isinstance(field, ast.AnnAssign)}
    seen = set()
    for program, *given in (shlex.split(command) for command in commands if command.strip()):
        seen.add(program)
        if program == "docker" and given[0] == "build":
            declared = [argument for name, argument in steps(ROOT / given[given.index("-f") + 1]) if name == "ARG"]
            wanted = [given[i + 1].partition("=")[0] for i, part in enumerate(given) if part == "--build-arg"]
            assert {"REPO", "REVISION"} <= set(wanted) <= {argument.partition("=")[0] for argument in declared}
        elif program == "docker":
            assert given == ["run", "--read-only", "--tmpfs", "/cache", "-p", "8000:8000", "pwl-vit"]
        elif program == "serve":
            assert given[:2] == ["run", "examples.ray_serve:app"]
            assert {part.partition("=")[0] for part in given[2:]} <= known
        elif program == "python" and given[0] != "-m":
            assert given[0] == "examples/serve.py"
            assert set(given[2:]) <= {"--runtime"}
    assert {"docker", "serve", "python"} <= seen


def test_no_probe_is_tied_to_growth_and_the_pod_writes_where_the_image_does():
    (block,) = _blocks("yaml")
    pod = yaml.safe_load(block)
    (container,) = pod["containers"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert probes == [{"path": "/healthz", "port": 8000}] * 3
    assert {"port": container["ports"][0]["containerPort"]} == {"port": 8000}
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/cache"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (DOCS.parent / target).exists(), target


def test_tables_name_the_arguments_and_defaults_of_the_code():
    for row in re.findall(r"^\| `(tries|max_seconds|first_wait|max_wait)` \| ([\d.]+) \|", TEXT, flags=re.MULTILINE):
        assert float(getattr(RetryPolicy(), row[0])) == float(row[1])
    defaults = PWLForImageClassification.stream_stages.__kwdefaults__
    (lookahead,) = re.findall(r"^\| `lookahead_bytes` \| ([\d,]+) \|", TEXT, flags=re.MULTILINE)
    assert int(lookahead.replace(",", "")) == defaults["lookahead_bytes"]
    for name in defaults:
        assert f"| `{name}` |" in TEXT
