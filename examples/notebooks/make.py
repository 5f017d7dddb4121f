"""Makes a notebook from the script of its name: cells begin with `# %%`, those of text with `# %% [markdown]`.

    python examples/notebooks/make.py images

The notebook is run as it is made, in an empty folder, and keeps what its cells show.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).resolve().parent


def notebook_of(script: str) -> nbformat.NotebookNode:
    """The notebook of a script, not run yet.

    Args:
        script: Its text.
    """
    cells = []
    for number, (kind, body) in enumerate(re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", script, re.M | re.S)):
        if kind:
            cells.append(new_markdown_cell(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            cells.append(new_code_cell(body.strip()))
        # Random ones would change with every run.
        cells[-1]["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder; it then has what its cells show, without progress bars, logs and times.

    Args:
        notebook: The notebook.
        folder: Its working directory.
    """
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main() -> None:
    """Make the notebooks that are named on the command line."""
    for name in sys.argv[1:]:
        notebook = notebook_of((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
