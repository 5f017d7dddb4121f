"""The notebooks of examples/: made from their scripts, run as they were, and run again in few steps."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "make")
# For a test that need not learn anything.
QUICK = {
    r"quiet=True\)": 'quiet=True, training_arguments=["--max_steps", "3", "--teacher_options", "max_steps=3"])',
    r"--num_train_epochs \d+": "--max_steps 3",
}


@pytest.fixture
def make() -> ModuleType:
    spec = spec_from_file_location("make_notebooks", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_that_of_its_script_and_was_run_to_its_end(make: ModuleType, script: Path) -> None:
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    made = make.notebook_of(script.read_text(encoding="utf-8"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [(c.cell_type, c.source) for c in made.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert len(script.with_suffix(".ipynb").read_bytes()) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_runs(make: ModuleType, script: Path, tmp_path: Path) -> None:
    text = script.read_text(encoding="utf-8")
    for pattern, replaced in QUICK.items():
        text = re.sub(pattern, replaced, text)
    notebook = make.notebook_of(text)
    make.run(notebook, tmp_path)
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    # The last stage is the teacher, and answers grow up to it.
    same, grown = [o.data["text/plain"] for o in shown if o.output_type == "execute_result"][1:3]
    assert same == "True"
    assert re.fullmatch(r"\([34], True\)", grown)
