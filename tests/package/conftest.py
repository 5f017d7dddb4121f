"""The wheel and the source distribution, built once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_OWN = {".ci", ".github", ".gitignore"}


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What lies in a checkout and is not of it: environments, caches, what was built or trained there."""
    made = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", "site")(folder, names)
    at_top = shutil.ignore_patterns(".*", "digits-pwl", "digits-teacher", "benchmarks-data")(folder, names)
    return made | (at_top - _OWN if Path(folder) == ROOT else set())


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel and a source distribution, built from a copy of the checkout."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, source, ignore=_left_out)
    out = source.parent / "dist"
    command = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}
