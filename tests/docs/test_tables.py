"""Tables of the pages, compared with the code that they describe."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

from pwl_hf import Manifest, Metric, PWLError, PWLForImageClassification
from pwl_hf.modeling.repository import layout
from pwl_hf.modeling.repository.manifest import FORMAT_VERSION
from pwl_hf.modeling.repository.output_folder import UNFINISHED_FILE
from pwl_hf.modeling.sources import Sources
from tests.docs.pages import DOCS, ROOT, fences, table
from tests.tiny import tiny_model

# Raised and caught within the library.
INNER = {"Interrupted", "TooLongError", "RefusedAnswer"}


def test_table_of_arguments_is_the_signature() -> None:
    rows = table(DOCS / "loading.md", "argument")
    parameters = inspect.signature(PWLForImageClassification.from_pretrained).parameters.values()
    named = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert rows.keys() >= named.keys()
    for name, default in named.items():
        shown = rows[name][0].strip("`").replace('"', "'")
        assert shown == repr(default), name


def _errors_of_the_code() -> set[str]:
    known = {"PWLError"}
    sources = [path for folder in ("modeling", "pwl_hf", "training") for path in (ROOT / folder).rglob("*.py")]
    classes = [node for path in sources for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    while True:
        more = {c.name for c in classes if {ast.unparse(base) for base in c.bases} & known} | known
        if more == known:
            return known - INNER
        known = more


def test_every_class_of_error_is_listed_with_its_bases() -> None:
    import pwl_hf.data.errors
    import pwl_hf.modeling.errors
    import pwl_hf.training.images.gradient_maps

    rows = table(DOCS / "errors.md", "class")
    ours = _errors_of_the_code()
    assert rows.keys() == ours
    modules = (pwl_hf.modeling.errors, pwl_hf.data.errors, pwl_hf.training.images.gradient_maps)
    for name in ours:
        kind = next(getattr(module, name) for module in modules if hasattr(module, name))
        bases = {base.__name__ for base in kind.__bases__ if base is not PWLError}
        assert set(re.findall(r"`(\w+)`", rows[name][0])) == bases, name


def test_table_of_files_names_every_place_of_the_layout() -> None:
    rows = " ".join(table(DOCS / "format.md", "file"))
    mask = Sources("TTSS")
    paths = [
        layout.CONFIG_FILE,
        layout.MANIFEST_FILE,
        layout.STUDENT_FILE,
        layout.PROCESSOR_FILE,
        UNFINISHED_FILE,
        layout.statistics_file(mask),
    ]
    for path in paths:
        assert path in rows, path
    numbered = [layout.teacher_shard, layout.quantised_file, layout.refinement_file]
    for path in [of(1, 4) for of in numbered]:
        assert path.replace("00001", "0000k").replace("00004", "0000N") in rows, path
    for direction in ("encoder", "decoder"):
        assert layout.converter_file(direction, 1).replace("00001", "0000i") in rows


@pytest.mark.parametrize("version", [1, 2, 3])
def test_tables_of_fields_are_those_of_a_manifest(version: int, tmp_path: Path) -> None:
    model = tiny_model("vit")
    if version == 2:
        model.set_schedule(["SSSS", "SSST", "SSTT", "STTT", "TTTT"])
    if version == 3:
        model.add_tier()
    model.save_pretrained(tmp_path)
    manifest = Manifest.from_json((tmp_path / "pwl_index.json").read_text())
    data = json.loads(manifest.with_metrics({0: (Metric("accuracy", 0.5, "digits", "test", 2),)}).to_json())
    assert data["format_version"] == version
    fields = table(DOCS / "format.md", "field")
    assert data.keys() - fields.keys() == set()
    assert data["stages"][0].keys() - fields.keys() == set()
    assert data["stages"][0]["files"][0].keys() - fields.keys() == set()
    text = (DOCS / "format.md").read_text()
    assert all(f"`{name}`" in text for name in data["stages"][0]["metrics"][0])
    # What is said to be of a later version is not written before it.
    for name, cells in fields.items():
        since = int(found[1]) if (found := re.search(r"from version (\d)", cells[1])) else 1
        written = name in {*data, *data["stages"][0], *data["stages"][0]["files"][0]}
        assert not (written and since > version), name
    assert sorted(map(int, table(DOCS / "format.md", "version"))) == list(range(1, FORMAT_VERSION + 1))


def test_commands_for_contributors_are_those_of_the_makefile_and_of_ci() -> None:
    page = ROOT / "CONTRIBUTING.md"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", page.read_text(encoding="utf-8")))
    assert named == targets
    (first, *_) = fences(page)
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(part.strip() in ci for line in first.content.splitlines() for part in line.split("&&"))


def test_folders_of_contributing_exist() -> None:
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 20
    assert [
        path for path in named if not (ROOT / path).exists() and not (ROOT / "modeling/families" / path).exists()
    ] == []
