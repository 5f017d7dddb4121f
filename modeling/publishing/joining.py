"""Several modules of a package joined into one readable file, for places where the package is not installed.

The modules' text stays as it is, comments too. What changes: imports between the modules go, all others come first, and
annotations that name something further down are put in quotes. A module that is imported within a function only stays
out of the file, unless it is asked for: the function raises in its place.
"""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeGuard

_WIDTH = 120


@dataclass
class Module:
    """A module to be joined.

    Args:
        name: Its dotted name within the package, such as `"routes.masks"`.
        text: Its source.
    """

    name: str
    text: str
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.text)

    def needs(self, statement: ast.AST) -> list[str]:
        """The modules of the package that a relative import names; none for anything else."""
        if not isinstance(statement, ast.ImportFrom) or not statement.level:
            return []
        above = self.name.split(".")[: -statement.level]
        if statement.module is not None:
            return [".".join([*above, statement.module])]
        return [".".join([*above, alias.name]) for alias in statement.names]


def join(root: str, read: Callable[[str], str], *, also: Sequence[str] = (), header: str, absent: str) -> str:
    """One file of a module and of all that it imports.

    Args:
        root: The module's name within its package.
        also: Modules that are imported within functions only, and are wanted with all that they import.
        read: Gives the source of a module of the package.
        header: The docstring of the file.
        absent: What a function raises where it would import a module that is not in the file: an expression.

    Returns:
        The file's text.

    Raises:
        ValueError: If two modules define one name, or import each other in a circle.
    """
    modules = _apart(list(_in_order([root, *also], read)))
    runtime = [s for module in modules for s in module.tree.body if isinstance(s, ast.Import | ast.ImportFrom)]
    typing = [s for module in modules for s in _typing_imports(module.tree)]
    imports = _merged(runtime)
    only_typing = {key: names - imports.get(key, set()) for key, names in _merged(typing).items()}
    # 1. What is known when an annotation is evaluated: builtins, imports, and what stands above.
    known = set(dir(builtins)) | {name for names in imports.values() for name in map(_bound, names)}
    sections = []
    for module in modules:
        sections.append(_section(module, {m.name for m in modules}, known, absent))
        known.update(_definitions(module.tree.body))
    # 2. Imports that nothing is left of go.
    words = _words("".join(sections))
    imports, only_typing = (
        {module: {name for name in names if _bound(name) in words} for module, names in found.items()}
        for found in (imports, only_typing)
    )
    if any(only_typing.values()):
        imports.setdefault("typing", set()).add("TYPE_CHECKING")
    # 3. The file: docstring, imports, those for types alone, and a section for each module.
    guarded = "".join(f"    {line}\n" for line in _import_lines(only_typing))
    head = "".join(f"{line}\n" for line in _import_lines(imports))
    return f'"""{header}"""\n\n{head}' + (f"\nif TYPE_CHECKING:\n{guarded}" if guarded else "") + "".join(sections)


def _in_order(roots: Sequence[str], read: Callable[[str], str]) -> Iterator[Module]:
    """Modules and all that they import, what is imported before what imports it."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> Iterator[Module]:
        if name in above:
            raise ValueError(f"{' -> '.join([*above, name])} is a circle of imports, so they cannot be joined")
        if name in done:
            return
        module = Module(name, read(name))
        for statement in module.tree.body:
            for needed in module.needs(statement):
                yield from visit(needed, (*above, name))
        done.add(name)
        yield module

    for root in roots:
        yield from visit(root, ())


def _apart(modules: list[Module]) -> list[Module]:
    """The modules, with private names that two of them define told apart by the module's name."""
    owners: dict[str, str] = {}
    renamed = []
    for module in modules:
        names = set(_definitions(module.tree.body))
        taken = {name for name in names if owners.setdefault(name, module.name) != module.name}
        if public := sorted(name for name in taken if not name.startswith("_")):
            taken_by = f"{owners[public[0]]} and {module.name}"
            raise ValueError(f"{taken_by} both define {public[0]!r}, so they cannot be joined")
        renamed.append(_rename(module, {name: f"{name}_{module.name.rpartition('.')[2]}" for name in taken}))
    return renamed


def _rename(module: Module, names: dict[str, str]) -> Module:
    """A module with other names in the place of some of its own, wherever they do not stand behind a dot."""
    if not names:
        return module
    tokens = list(tokenize.generate_tokens(io.StringIO(module.text).readline))
    lines = module.text.splitlines(keepends=True)
    for before, token in reversed(list(pairwise(tokens))):
        if token.type == tokenize.NAME and token.string in names and before.string != ".":
            row, column = token.start
            line = lines[row - 1]
            lines[row - 1] = line[:column] + names[token.string] + line[token.end[1] :]
    return Module(module.name, "".join(lines))


def _definitions(body: list[ast.stmt]) -> Iterator[str]:
    """What the statements of a module define, in their order."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name) and t.id not in ("__all__", "logger"))
        elif isinstance(statement, ast.If):
            yield from _definitions(statement.orelse)


def _section(module: Module, joined: set[str], known: set[str], absent: str) -> str:
    """A module's text without what the file has elsewhere, under its name and docstring as a comment."""
    text, starts = module.text, [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    encoded = text.encode()
    edits: list[tuple[int, int, bytes]] = []

    def replace_between(first: ast.expr | ast.stmt, last: ast.expr | ast.stmt, by: str) -> None:
        start = starts[first.lineno - 1] + first.col_offset
        end = starts[(last.end_lineno or last.lineno) - 1] + (last.end_col_offset or 0)
        edits.append((start, end, by.encode()))

    def replace(node: ast.expr | ast.stmt, by: str) -> None:
        replace_between(node, node, by)

    at_the_top = [s for block in module.tree.body for s in ([block, *block.body] if _is_typing(block) else [block])]
    # 1. Imports, `__all__` and the docstring go.
    for statement in module.tree.body:
        is_all = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if isinstance(statement, ast.Import | ast.ImportFrom) or is_all or is_docstring:
            replace(statement, "")
        elif _is_typing(statement):
            kept = [s for s in statement.body if not isinstance(s, ast.Import | ast.ImportFrom)]
            replace(statement, "\n    ".join(["if TYPE_CHECKING:", *map(ast.unparse, kept)]) if kept else "")
    # 2. Imports within functions: of what is in the file they are not needed; without the rest the block ends there.
    for block in _blocks(module.tree):
        for node in block:
            if module.needs(node) and node not in at_the_top:
                if joined.issuperset(module.needs(node)):
                    replace(node, "pass")
                else:
                    replace_between(node, block[-1], f"raise {absent}")
                    break
    # 3. Annotations that name what does not exist yet are put in quotes.
    above = set(known)
    for statement in module.tree.body:
        for annotation in _evaluated_annotations(statement):
            if any(_is_unknown(node, above) for node in ast.walk(annotation)):
                replace(annotation, repr(ast.get_source_segment(text, annotation)).replace("'", '"'))
        above.update(_definitions([statement]))
    for start, end, by in sorted(edits, reverse=True):
        if not any(outer[0] <= start and end <= outer[1] for outer in edits if outer[:2] != (start, end)):
            encoded = encoded[:start] + by + encoded[end:]
    body = encoded.decode().strip()
    while "\n\n\n\n" in body:
        body = body.replace("\n\n\n\n", "\n\n\n")
    title = f"# --- {module.name} "
    comment = "".join(f"# {line}".rstrip() + "\n" for line in (ast.get_docstring(module.tree) or "").splitlines())
    return f"\n\n{title.ljust(_WIDTH, '-')}\n{comment}\n\n{body}\n"


def _blocks(tree: ast.Module) -> Iterator[list[ast.stmt]]:
    """The bodies of all functions, conditions, loops and the like."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and node is not tree:
                yield block


def _evaluated_annotations(statement: ast.stmt) -> Iterator[ast.expr]:
    """The annotations that Python evaluates when it comes to a statement: not those within a function."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        args = statement.args
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
        yield from (arg.annotation for arg in every if arg.annotation is not None)
        if statement.returns is not None:
            yield statement.returns
    elif isinstance(statement, ast.AnnAssign):
        yield statement.annotation
    elif isinstance(statement, ast.ClassDef | ast.If):
        for inner in statement.body:
            yield from _evaluated_annotations(inner)


def _words(text: str) -> set[str]:
    """The names that a text uses, also in annotations that are in quotes."""
    found: set[str] = set()
    for before, token in pairwise(tokenize.generate_tokens(io.StringIO(text).readline)):
        if token.type == tokenize.NAME and before.string != ".":
            found.add(token.string)
        elif token.type == tokenize.STRING and not token.string.startswith('"""'):
            found.update(re.findall(r"\w+", token.string))
    return found


def _is_unknown(node: ast.AST, known: set[str]) -> bool:
    """Whether a part of an annotation cannot be evaluated yet, or (`weakref.finalize[...]`) not for certain."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute)
    return isinstance(node, ast.Name) and node.id not in known


def _is_typing(statement: ast.stmt) -> TypeGuard[ast.If]:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING" and not statement.orelse


def _typing_imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    blocks = (statement for statement in tree.body if _is_typing(statement))
    yield from (s for block in blocks for s in block.body if isinstance(s, ast.Import | ast.ImportFrom))


def _merged(statements: list[ast.Import | ast.ImportFrom]) -> dict[str, set[str]]:
    """Absolute imports by module: the names from it, such as `"a"` or `"a as b"`; `""` has those of whole modules."""
    found: dict[str, set[str]] = {}
    for statement in statements:
        if isinstance(statement, ast.ImportFrom) and (statement.level or statement.module == "__future__"):
            continue
        module = (statement.module or "") if isinstance(statement, ast.ImportFrom) else ""
        found.setdefault(module, set()).update(ast.unparse(alias) for alias in statement.names)
    return found


def _bound(name: str) -> str:
    """The name that an import binds."""
    return name.rpartition(" as ")[2].partition(".")[0]


def _import_lines(imports: dict[str, set[str]]) -> Iterator[str]:
    yield from (f"import {name}" for name in sorted(imports.get("", ())))
    for module in sorted(imports.keys() - {""}):
        if imports[module]:
            line = f"from {module} import {', '.join(sorted(imports[module]))}"
            if len(line) <= _WIDTH - 4:
                yield line
            else:
                yield f"from {module} import ("
                yield from (f"    {name}," for name in sorted(imports[module]))
                yield ")"
