"""What the source files may import: `modeling/` travels with the weights."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
MODELING = sorted((ROOT / "modeling").glob("*.py"))
PACKAGE = sorted((ROOT / "pwl_hf").glob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level of a relative import, module) for every import of a file, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def names(requirements: list[str] | None) -> set[str]:
    found = (Requirement(text) for text in requirements or [])
    return {r.name.replace("-", "_").lower() for r in found if r.marker is None or r.marker.evaluate()}


@pytest.mark.parametrize("path", MODELING, ids=lambda path: path.stem)
def test_modeling_imports_only_siblings_torch_transformers_and_what_they_need(path):
    allowed = {"torch", "transformers"} | names(requires("transformers"))
    if path.stem == "adapters":
        allowed.add("peft")  # within `try`: transformers looks at what remote code imports, but not there
    siblings = {sibling.stem for sibling in MODELING}
    for level, module in imports(path):
        if level:
            assert level == 1, f"from {'.' * level}{module}"
            assert module in siblings, f"from .{module}"
        else:
            top = module.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, module
            assert top not in ("pwl_hf", "modeling", "training"), module


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_package_does_not_import_training(path):
    for _, module in imports(path):
        assert not module.startswith(("training", "pwl_hf.training")) or path.stem in ("demo", "cli")


@pytest.mark.parametrize("path", [*MODELING, *PACKAGE], ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_no_assert_and_no_print_outside_the_command_line(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.stem not in ("cli", "demo"):
            assert node.func.id != "print", node.lineno


def test_private_names_of_transformers_are_in_one_file():
    public = {"transformers", "transformers.modeling_outputs", "transformers.utils", "transformers.activations"}
    for path in [*MODELING, *PACKAGE]:
        found = {module for level, module in imports(path) if not level and module.split(".")[0] == "transformers"}
        if path.stem != "transformers_internals":
            assert found <= public, (path.name, found - public)
