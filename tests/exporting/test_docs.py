"""docs/exporting.md: its code runs as it stands, in Python, in node and on the command line."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from pwl_hf.cli import app
from tests.exporting.helpers import plain_session, read_index
from tests.repository.helpers import publish
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "exporting.md"
TEXT = DOCS.read_text(encoding="utf-8")
TRANSFORMERS_JS = "@huggingface/transformers@4.3.1"


IMAGES, _, OTHERS = TEXT.partition("## Texts and sounds")


def _fences(language: str, text: str = IMAGES) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


BLOCKS = list(zip(_fences("python"), _fences("text"), strict=True))


@pytest.fixture
def folder(vit, tmp_path):
    """Where the repositories lie that the code names."""
    shutil.copytree(vit, tmp_path / "digits-onnx")
    return tmp_path


def _ours(text: str) -> str:
    """With the sizes of the tiny model: 5 labels."""
    return text.replace(", 10)", ", 5)")


def test_first_block_exports_and_prints_what_is_shown(tmp_path, capsys, monkeypatch):
    tiny_model("vit").save_pretrained(tmp_path / "digits-pwl")
    monkeypatch.chdir(tmp_path)
    code, shown = BLOCKS[0]
    exec(compile(code, str(DOCS), "exec"), {})
    assert capsys.readouterr().out == shown
    assert read_index(tmp_path / "digits-onnx").labels[0] == "ant"


@pytest.mark.parametrize(("code", "shown"), BLOCKS[1:], ids=["folder", "cache", "stage"])
def test_python_blocks_print_what_is_shown(folder, hub, repo_id, vit, capsys, monkeypatch, code, shown):
    publish(hub, repo_id, vit)
    monkeypatch.chdir(folder)
    exec(compile(code.replace("org/pwl-vit", repo_id), str(DOCS), "exec"), {})
    assert capsys.readouterr().out == _ours(shown)


def test_block_of_texts_prints_what_is_shown(texts, tmp_path, capsys, monkeypatch):
    shutil.copytree(texts, tmp_path / "pwl-bert")
    monkeypatch.chdir(tmp_path)
    (code,), (shown,) = _fences("python", OTHERS), _fences("text", OTHERS)
    exec(compile(code, str(DOCS), "exec"), {})
    assert capsys.readouterr().out == shown


def test_only_onnxruntime_is_needed_for_the_teacher(folder):
    code = f"{BLOCKS[1][0]}\nimport sys; print({{'torch', 'transformers', 'pwl_hf'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "(2, 5)\nset()\n", done.stderr


def test_commands_and_options_exist(tmp_path, monkeypatch, run):
    commands = get_command(app).commands
    parameters = [*commands["export"].params, *get_command(app).params]
    options = {option for parameter in parameters for option in parameter.opts}
    assert {"--image-size", "--create-pr", "-o"} <= options
    named = set(re.findall(r"(--[a-z][a-z-]+)", TEXT)) - {"--local-dir"}
    assert named <= options
    _, command = _fences("bash")[0].splitlines()
    assert shlex.split(command)[:2] == ["pwl-hf", "export"]


def test_table_names_the_files_that_are_written(vit):
    table = set(re.findall(r"^\| `((?:onnx|teacher)/[^`]+)` \|", TEXT, flags=re.MULTILINE))
    written = {path.relative_to(vit).as_posix() for path in (*vit.glob("onnx/*"), vit / "teacher" / "model.onnx")}
    kinds = {re.sub(r"0000\d", "0000k", re.sub("tail-[ST]+", "tail-TTSS", path)) for path in written}
    assert kinds == table


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (DOCS.parent / target).exists(), target


# --- transformers.js -------------------------------------------------------------------------------------------------

Node = Callable[[str, Path], list[int]]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """Run a module that imports transformers.js; what it printed."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    installed = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", TRANSFORMERS_JS]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{TRANSFORMERS_JS} cannot be installed: {done.stderr[-300:]}")

    def run(code: str, folder: Path) -> list[int]:
        shutil.copytree(folder, installed, dirs_exist_ok=True)
        (installed / "block.mjs").write_text(code)
        done = subprocess.run(["node", "block.mjs"], cwd=installed, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def _tiny(code: str) -> str:
    """At the tiny model's size, with every value the same, and the logits printed."""
    code = code.replace("224", "16").replace("new Float32Array(3 * 16 * 16)", "new Float32Array(3 * 16 * 16).fill(0.5)")
    return code.replace("console.log(logits.dims)", "console.log(JSON.stringify(logits.tolist()))")


def _expected(vit: Path) -> torch.Tensor:
    images = torch.full((1, 3, 16, 16), 0.5).numpy()
    return torch.from_numpy(plain_session(vit / "teacher" / "model.onnx").run(None, {"pixel_values": images})[0])


@pytest.mark.slow
def test_transformers_js_opens_the_teacher_in_a_folder(node, folder, vit):
    found = node(_tiny(_fences("js")[0]), folder)
    torch.testing.assert_close(torch.tensor(found), _expected(vit), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_transformers_js_opens_the_teacher_on_the_hub(node, folder, vit, hub, repo_id):
    publish(hub, repo_id, vit)
    code = _tiny(_fences("js")[1]).replace("https://huggingface.co/", f"{hub.url}/").replace("org/pwl-vit", repo_id)
    code = code.replace(
        "env.remoteHost", "env.allowLocalModels = false;\nenv.cacheDir = './cache/';\nenv.remoteHost", 1
    )
    with hub.record() as requests:
        found = node(code, folder)
    torch.testing.assert_close(torch.tensor(found), _expected(vit), rtol=0, atol=1e-6)
    assert {r.file for r in requests if r.file and r.method == "GET"} >= {
        "teacher/model.onnx",
        *(f"teacher/model-0000{block}-of-00004.safetensors" for block in range(1, 5)),
    }
