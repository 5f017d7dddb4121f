"""Modules of a user's own that register families: how command lines come to know them."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path

from pwl_hf.modeling.errors import InputError


def import_families(name: str) -> None:
    """Import a module that registers families when it is imported, once; it is the user's own code.

    Args:
        name: The module as `import` would have it, or its file, which ends in `.py`. A file's own folder is searched
            for what it imports, as of a script.

    Raises:
        InputError: If there is none; if a file has the name of another module that is imported already.

    Example:

        >>> from pwl_hf.own_families import import_families
        >>> import_families("my_net.py")  # doctest: +SKIP
    """
    if not name.endswith(".py"):
        # As `python -m` does.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise InputError(f"no module {name!r} of families: give its dotted name, or its file (.py)") from error
        return
    path = Path(name).resolve()
    if not path.is_file():
        raise InputError(f"no file {name} of families: give the module's dotted name, or its file (.py)")
    if (known := sys.modules.get(path.stem)) is not None:
        if Path(str(getattr(known, "__file__", ""))).resolve() == path:
            return
        raise InputError(f"{name} has the name of another module, {path.stem!r}: give the file another name")
    sys.path.append(str(path.parent))
    loader = SourceFileLoader(path.stem, str(path))
    module = module_from_spec(ModuleSpec(path.stem, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
