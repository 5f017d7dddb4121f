"""The `speed` command."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.circumstances import circumstances
from benchmarks.speed.alone import alone
from benchmarks.speed.figures import Place
from benchmarks.speed.pairs import pairs
from benchmarks.speed.suite import SUITE
from benchmarks.speed.tables import key, measured_pairs, render
from benchmarks.store import Store
from pwl_hf.modeling.repository.files import write_text


def speed(
    pair: Annotated[list[str] | None, typer.Option(help="A pair; may be given several times.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A measure; may be given several times.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 9,
    data: Annotated[Path, typer.Option(help="Where repositories are made and kept.")] = Path("benchmarks-data/speed"),
    output: Annotated[Path, typer.Option(help="The folder of results.")] = Path("benchmarks/results"),
    table_only: Annotated[bool, typer.Option("--table-only", help="Measure nothing.")] = False,
) -> None:
    """Measure PWL against transformers' own loader: `speed.json`, a table `speed.md`, and plots."""
    names = pair or ["vit-b"]
    _check(names, pairs(), "--pair")
    _check(only or [], SUITE, "--only")
    store = Store(output / "speed.json", kinds=("measures",))
    for name, entry in SUITE.items():
        if table_only or (only and name not in only):
            continue
        if entry.is_missing:
            if only:
                raise typer.BadParameter(f"{name} needs {entry.needs}, which is not installed", param_hint="--only")
            typer.echo(f"{name} is left out: {entry.needs} is not installed", err=True)
            continue
        for each in pair or entry.pairs or names:
            typer.echo(f"{name}, {each}", err=True)
            # Each in a process of its own: threads, caches and memory of one are not another's.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
                found = child.submit(measured, name, Place(each, pairs()[each], data, repeats)).result()
            store.add("measures", key(name, each), found)
    stored = store.read("measures")
    text = render(stored, names, "python -m benchmarks speed")
    write_text(output / "speed.md", text)
    for name, entry in SUITE.items():
        draw = entry.load_plot()
        for each in measured_pairs(stored, name) if draw is not None else ():
            draw(stored[key(name, each)]["series"], output / f"{name}-{each}.png")
    typer.echo(text)


def measured(name: str, place: Place) -> dict[str, Any]:
    """Run a measure of the suite, in a process that is for this alone.

    Returns:
        The entry for the store.
    """
    alone()
    return SUITE[name].load()(place).as_json() | circumstances()


def _check(names: Sequence[str], known: Collection[str], option: str) -> None:
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
