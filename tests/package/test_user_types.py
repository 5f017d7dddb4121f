"""What a type checker says of a user's file, with the package installed from its wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The comment names what a checker must find wrong with the line; the others are right.
USERS = """\
from __future__ import annotations

from typing import assert_type

from pwl_hf import Manifest, PWLConfig, PWLForImageClassification, RetryPolicy, Sources, prefetch, runtime
from pwl_hf.data import DataSource
from pwl_hf.evaluation import evaluate_repository

prefetch("org/pwl-vit")
model: PWLForImageClassification = PWLForImageClassification.from_pretrained(
    "org/pwl-vit", stage="teacher", keep=("student",), retry=RetryPolicy(tries=2)
)
assert_type(model.stage, int | None)
assert_type(model.schedule, tuple[str, ...])
assert_type(model.load_next_stage(), int)
assert_type(Sources("TTSS").mask, str)
assert_type(Manifest.from_json("{}").num_stages, int)
with model.stream_stages("teacher", max_bytes_per_second=1e6) as stream:
    assert_type(stream.bytes_done, int)
light = runtime.load("org/pwl-vit", stream=True)
assert_type(light.labels, tuple[str, ...])
report = evaluate_repository("org/pwl-vit", DataSource("digits"), "test")
assert_type(report.evaluation.accuracies, list[float])

model.set_stage(1.5)  # wrong
model.load_next_stage(2)  # wrong
model.set_schedule(3)  # wrong
model.next_stage()  # wrong
RetryPolicy(attempts=2)  # wrong
Sources("TTSS").mask = 1  # wrong
light.predict("cat.png", top_k="5")  # wrong
runtime.load("org/pwl-vit", stages=2)  # wrong
DataSource(3)  # wrong
"""
WRONG = {number for number, line in enumerate(USERS.splitlines(), start=1) if line.endswith("# wrong")}


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("types") / "venv"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("**/site-packages")
    zipfile.ZipFile(built["wheel"]).extractall(site)
    # An editable install of this checkout among them is not seen: its own .pth is not read.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    return next(path for path in folder.glob("*/python*") if path.stem == "python")


def _lines(checker: list[str], python: Path, folder: Path, option: str) -> tuple[set[int], str]:
    (folder / "users.py").write_text(USERS)
    command = [sys.executable, "-m", *checker, option, str(python), "users.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    said = done.stdout + done.stderr
    return {int(line) for line in re.findall(r"users\.py:(\d+)[:\d]*:? (?:- )?error", said)}, said


def test_mypy_finds_what_is_wrong_and_nothing_else(installed: Path, tmp_path: Path) -> None:
    found, said = _lines(["mypy", "--strict", "--cache-dir", str(tmp_path)], installed, tmp_path, "--python-executable")
    assert found == WRONG, said


def test_pyright_finds_what_is_wrong_and_nothing_else(installed: Path, tmp_path: Path) -> None:
    found, said = _lines(["pyright"], installed, tmp_path, "--pythonpath")
    if not found and "npm" in said:
        pytest.skip(f"pyright could not be fetched: {said[-200:]}")
    assert found == WRONG, said
