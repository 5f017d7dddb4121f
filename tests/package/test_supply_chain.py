"""Whatever is installed or imported directly is pinned, and the documents on security say what is so."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PINS = {
    canonicalize_name(name): pinned
    for name, pinned in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}
SOURCES = [path for folder in ("modeling", "pwl_hf", "training", "examples") for path in (ROOT / folder).rglob("*.py")]


def imported() -> set[str]:
    """The distributions that the package and its examples import."""
    tops = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                tops.add(node.module.split(".")[0])
    known = packages_distributions()
    found = {canonicalize_name(name) for top in tops - set(sys.stdlib_module_names) for name in known.get(top, [])}
    return found - {"pwl-hf"}


def test_every_direct_dependency_is_pinned():
    declared = {canonicalize_name(Requirement(text).name) for text in requires("pwl-hf") or []} - {"pwl-hf"}
    assert {"rich", "setuptools"} <= PINS.keys()
    assert sorted((declared | imported()) - PINS.keys()) == []


@pytest.mark.parametrize("name", ["rich", "typer", "huggingface_hub", "transformers", "torch", "safetensors"])
def test_pins_are_what_is_tested(name):
    assert version(name).partition("+")[0] == PINS[canonicalize_name(name)]


def test_pins_lie_within_what_is_declared():
    for text in requires("pwl-hf") or []:
        requirement = Requirement(text)
        if requirement.name != "pwl-hf":
            assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_documents_on_security_are_there_and_linked():
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "docs/security.md" in policy
    assert "SECURITY.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("trusted", "never", "report"):
        assert word in policy.lower()


def test_table_of_attacks_quotes_what_the_code_says():
    """As the table of faults does: what stands in quotes there stands in a source file."""
    code = " ".join(path.read_text(encoding="utf-8") for path in SOURCES)
    # Strings as they are put together: a line break within one is a quote, space, and a quote.
    code = re.sub(r"\"\s+f?\"", "", code)
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for attack, seen, _ in rows:
        for quoted in re.findall(r'"([^"]+)"', seen):
            assert quoted in code, f"{attack}: {quoted}"


def test_lowest_versions_are_those_that_are_declared():
    """`make lowest` installs them."""
    written = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    declared = [Requirement(text) for text in requires("pwl-hf") or []]
    bounds = {r.name: s.version for r in declared for s in r.specifier if s.operator == ">="}
    assert {canonicalize_name(name): v for name, v in written.items()} == {
        canonicalize_name(name): v for name, v in bounds.items()
    }
    assert {r.name for r in declared} - {"pwl-hf"} == bounds.keys()
