"""The base without its extras: what it does without torch, and what it says where it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import HubServer
from tests.tiny import tiny_model

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = {arguments!r}
"""
TORCH = {"torch", "transformers", "numpy", "PIL"}


def run(
    code: str, env: dict[str, str], absent: set[str] = TORCH, arguments: tuple[object, ...] = ()
) -> tuple[int, str]:
    code = WITHOUT.format(absent=absent, arguments=["pwl-hf", *map(str, arguments)]) + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    tiny_model("vit").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


CLI = "from pwl_hf.cli import main; main()"


def test_info_and_download_need_no_torch(
    hub: HubServer, repo_id: str, repository: Path, fresh_env: dict[str, str], tmp_path: Path
) -> None:
    hub.store.create_repo(repo_id)
    files = {p.relative_to(repository).as_posix(): p.read_bytes() for p in repository.rglob("*") if p.is_file()}
    hub.store.commit(repo_id, files)
    code, printed = run(CLI, fresh_env, arguments=("info", repository))
    assert (code, "TTSS" in printed) == (0, True), printed
    out = tmp_path / "out"
    code, printed = run(CLI, fresh_env, arguments=("download", repo_id, "--stage", "1", "--local-dir", out))
    assert code == 0, printed
    assert (out / "model.safetensors").read_bytes() == (repository / "model.safetensors").read_bytes()
    code, printed = run("from pwl_hf import Manifest, RepositoryError, Sources; print(Sources('TS'))", fresh_env)
    assert code == 0, printed


@pytest.mark.parametrize(
    ("statement", "missing", "extra"),
    [
        ("from pwl_hf import PWLForImageClassification", "torch", "torch"),
        ("import pwl_hf; pwl_hf.PWLConfig", "transformers", "torch"),
        ("from pwl_hf.modeling import Converter", "torch", "torch"),
        ("from pwl_hf.data import ImageSplit", "datasets", "evaluate"),
    ],
)
def test_a_class_says_which_extra_brings_what_it_needs(
    statement: str, missing: str, extra: str, fresh_env: dict[str, str]
) -> None:
    code, printed = run(statement, fresh_env, {missing})
    assert code == 1
    last = printed.strip().splitlines()[-1]
    assert f'pip install "pwl-hf[{extra}]"' in last
    assert missing in last


@pytest.mark.parametrize("command", [("convert", "a/b", "c/d", "-o", "out"), ("push", ".", "a/b")])
def test_a_command_says_so_in_one_line(command: tuple[str, ...], fresh_env: dict[str, str]) -> None:
    code, printed = run(CLI, fresh_env, arguments=command)
    assert code == 1
    assert len(printed.strip().splitlines()) == 1
    assert 'pip install "pwl-hf[torch]"' in printed
