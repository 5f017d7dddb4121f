"""What a wheel and a source distribution hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

from tests.children import python

ROOT = Path(__file__).resolve().parents[2]


def test_wheel_puts_one_name_into_site_packages(built):
    names = zipfile.ZipFile(built["wheel"]).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"pwl_hf"}


def test_wheel_holds_every_module_and_what_belongs_to_it(built):
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    for folder, package in (("pwl_hf", "pwl_hf"), ("modeling", "pwl_hf/modeling"), ("training", "pwl_hf/training")):
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder).as_posix()
            if path.is_file() and "__pycache__" not in inside:
                assert f"{package}/{inside}" in names
        assert f"{package}/py.typed" in names
    assert not [name for name in names if "tests" in name or "__pycache__" in name]


def test_wheel_metadata_names_license_script_and_extras(built):
    wheel = zipfile.ZipFile(built["wheel"])
    read = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
    metadata = read["METADATA"]
    for line in ("Name: pwl-hf", "License-Expression: Apache-2.0", "Requires-Python: >=3.11", "Provides-Extra: train"):
        assert line in metadata
    assert "Requires-Dist: transformers<6,>=5.23; extra ==" in metadata
    assert "pwl-hf = pwl_hf.cli:main" in read["entry_points.txt"]
    assert "Apache License" in read["LICENSE"]


def test_extras_that_run_models_bring_torch_and_the_base_does_not(built):
    wheel = zipfile.ZipFile(built["wheel"])
    metadata = Parser().parsestr(wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode())
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]

    def brings(extra: str) -> set[str]:
        found = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
        inner = {e for r in found if r.name == "pwl-hf" for e in r.extras}
        return {r.name for r in found}.union(*map(brings, inner))

    heavy = {"torch", "transformers"}
    assert not heavy & brings("")
    for extra in ("torch", "serve", "evaluate", "train", "dev"):
        assert heavy <= brings(extra), extra


def test_installed_wheel_is_whole_and_separate_from_the_checkout(built, tmp_path):
    target = tmp_path / "site"
    zipfile.ZipFile(built["wheel"]).extractall(target)
    code = f"""
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "") + repr(f).lower()]
sys.path.insert(0, {str(target)!r})
import pwl_hf, pwl_hf.modeling, pwl_hf.training, pwl_hf.registration, pwl_hf.modeling.repository.manifest
for module in (pwl_hf, pwl_hf.modeling, pwl_hf.training, pwl_hf.modeling.repository.manifest):
    assert module.__file__.startswith({str(target)!r}), module.__file__
assert list(pwl_hf.__path__) == [{str(target / "pwl_hf")!r}], pwl_hf.__path__
for name in ("modeling", "training"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit(f"{{name}} is importable")
from pwl_hf import PWLForImageClassification
assert PWLForImageClassification.__module__ == "pwl_hf.modeling.tasks.image_classification"
"""
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_source_distribution_holds_what_the_wheel_is_made_of(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in ("pwl_hf", "modeling", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.relative_to(ROOT).as_posix() in names
    top = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt"}
    assert top <= names


def test_source_distribution_holds_what_its_tests_need(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in (".ci", "benchmarks", "docs", "examples", "model_cards", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(".lock"):
                assert path.relative_to(ROOT).as_posix() in names


def test_metadata_and_contents_pass_their_own_checkers(built):
    for checker in (
        ["twine", "check", "--strict", built["wheel"], built["sdist"]],
        ["check_wheel_contents", built["wheel"]],
    ):
        done = subprocess.run([sys.executable, "-m", *map(str, checker)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
