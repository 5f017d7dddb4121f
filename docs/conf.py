"""How `make docs` builds the site: these Markdown files, and the API from docstrings."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import pwl_hf

project = "pwl-hf"
author = "the pwl-hf developers"
version = release = pwl_hf.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pwl-hf {release}"

# Anchors as GitHub makes them, so that a link works in both places.
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def _link_out(app: Sphinx, docname: str, content: list[str]) -> None:
    """Links to files of the checkout that are no pages: the site brings a copy of the file; a folder is only named."""
    folder = Path(app.srcdir, docname).parent

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        return f"{{download}}`{text} <{target}>`" if (folder / target).is_file() else text

    content[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+)(?:#[^)]*)?\)", link, content[0])


def setup(app: Sphinx) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _link_out)
