"""The command line of the benchmarks."""

from __future__ import annotations

import typer

from benchmarks.digits import digits
from benchmarks.exporting import export
from benchmarks.real.command import real
from benchmarks.recipes.command import cards, choosing, recipes
from benchmarks.rungs import rungs
from benchmarks.speed.command import speed

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(speed)
app.command()(recipes)
app.command()(cards)
app.command()(choosing)
app.command()(digits)
app.command()(export)
app.command()(rungs)
app.command()(real)


@app.callback()
def benchmarks() -> None:
    """Measure PWL against transformers' own loader, recipes of training, rungs, the demo's range, and exports."""


if __name__ == "__main__":
    app()
