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
MODELING = sorted(path for path in (ROOT / "modeling").rglob("*.py") if path.parent.name != "templates")
PACKAGE = sorted((ROOT / "pwl_hf").glob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module within `modeling`."""
    return ".".join(path.relative_to(ROOT / "modeling").with_suffix("").parts)


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


def imported_modules(path: Path) -> set[tuple[str, bool]]:
    """The modules of `modeling` that one of it imports, by dotted name, and whether for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(statement) for block in blocks for statement in block.body}
    above = path.relative_to(ROOT / "modeling").parent.parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = [*above[: len(above) - node.level + 1], *(node.module or "").split(".")]
            found.add((".".join(filter(None, package)), id(node) in for_types))
    return found


# What a place may import besides itself: the layers of `modeling`, from the ground up.
GROUND = {"errors", "plain", "bounds", "lazy", "sources", "schedule", "transformers_internals", "finite", "task_names"}
BELOW: dict[str, set[str]] = {
    "repository": {"errors", "bounds", "sources", "schedule", "task_names"},
    "families": GROUND,
}
BELOW["arrays"] = {"errors", "bounds"}
BELOW["graphs"] = {"errors", "bounds", "sources", "schedule", "task_names", "repository", "arrays"}
BELOW["routes"] = GROUND | {"families"}
BELOW["configuration_pwl"] = BELOW["routes"] | {"routes"}
BELOW["loading"] = BELOW["configuration_pwl"] | {"configuration_pwl", "repository"}
BELOW["parts"] = BELOW["loading"] | {"loading", "arrays"}
BELOW["exporting"] = BELOW["parts"] | {"parts", "graphs"}
BELOW["streaming"] = BELOW["loading"] | {"loading", "parts"}
BELOW["publishing"] = BELOW["loading"] | {"loading", "parts", "graphs"}
BELOW["stages"] = {"errors", "schedule", "sources", "repository", "parts", "streaming"}
BELOW["adapted_model"] = BELOW["parts"] | {"parts"}
BELOW["staged_model"] = BELOW["adapted_model"] | {"adapted_model", "streaming", "stages"}
BELOW["modeling_pwl"] = BELOW["staged_model"] | {"staged_model", "publishing", "exporting", "graphs"}
BELOW["tasks"] = BELOW["modeling_pwl"] | {"modeling_pwl"}


@pytest.mark.parametrize("path", MODELING, ids=name_of)
def test_imports_of_modeling_point_down(path):
    name = name_of(path)
    place = name.partition(".")[0]
    if name in ("__init__", *GROUND) or name.endswith("__init__"):
        return
    for module, _ in imported_modules(path):
        target = module.partition(".")[0]
        assert target == place or target in BELOW[place], f"{name} imports {module}"


def test_modules_of_modeling_import_each_other_in_no_circle():
    """Not for types alone either."""
    graph = {name_of(path): {module for module, _ in imported_modules(path)} for path in MODELING}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for module in sorted(graph.get(name, ())):
                visit(module, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", MODELING, ids=name_of)
def test_modeling_imports_only_itself_torch_transformers_and_what_they_need(path):
    allowed = {"torch", "transformers"} | names(requires("transformers"))
    if path.stem == "adapters":
        allowed.add("peft")  # within `try`: it need not be there
    if path.parent.name == "publishing":
        allowed |= {"jinja2", "yaml"}
    if path.parent.name in ("arrays", "parts"):
        allowed |= {"numpy"}
    if path.parent.name == "arrays":
        allowed |= {"zstandard"}
    if path.parent.name == "graphs":
        allowed |= {"numpy", "onnxruntime"}
    if path.parent.name == "exporting":
        allowed |= {"numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript"}
    for level, module in imports(path):
        top = module.split(".")[0]
        assert level or top in allowed or top in sys.stdlib_module_names, module


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
