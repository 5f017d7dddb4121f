"""An environment as `pip install` makes it, without the network: what its requirements need, and nothing else.

python = slim_environment(folder, ["pwl-hf[runtime]", "fastapi"])
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(requirements: Iterable[str]) -> set[str]:
    """The names of the distributions that these requirements bring, by what is installed here."""
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (wanted.name, extra) not in seen:
                seen.add((wanted.name, extra))
                further = [Requirement(text) for text in distribution(wanted.name).requires or []]
                of_base = [r for r in further if r.marker is None or r.marker.evaluate({"extra": ""})]
                of_extra = [r for r in further if r.marker is not None and r.marker.evaluate({"extra": extra})]
                waiting += of_extra if extra else of_base
    return {name for name, _ in seen}


def slim_environment(folder: Path, requirements: Iterable[str]) -> Path:
    """Make a virtual environment of links to what is installed here.

    Args:
        folder: Where; it must not be there.
        requirements: As for `pip install`, each of a distribution that is installed here.

    Returns:
        Its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in closure(requirements):
        found = distribution(name)
        for top in {path.parts[0] for path in found.files or () if ".." not in path.parts}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(Path(str(found.locate_file(top))))
        for script in found.entry_points.select(group="console_scripts"):
            lines = [f"#!{folder}/bin/python", "import sys", f"from {script.module} import {script.attr}"]
            command = folder / "bin" / script.name
            command.write_text("\n".join([*lines, f"sys.exit({script.attr}())", ""]))
            command.chmod(0o755)
    return folder / "bin" / "python"
