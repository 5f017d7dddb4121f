"""The command line of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.recipes.command import cards, recipes

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(recipes)
app.command()(cards)


@app.callback()
def benchmarks() -> None:
    """Measure PWL against transformers' own loader, and recipes of training against each other."""


@app.command()
def loading(
    pair: Annotated[str, typer.Option(help="vit-b, vit-l, resnet-50, vgg, or tiny.")] = "vit-b",
    repeats: Annotated[int, typer.Option(min=2, help="Rounds that count.")] = 9,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the files from the page cache before each.")] = False,
    data: Annotated[Path, typer.Option(help="Where the repositories are made and kept.")] = Path("benchmarks-data"),
    output: Annotated[Path | None, typer.Option(help="A JSON file to add the run to.")] = None,
) -> None:
    """Time to the first answer, and to the teacher stage by stage, from local files."""
    from benchmarks.loading import measure_loading
    from benchmarks.pairs import pairs, repository
    from benchmarks.report import ratio_table, write_json

    known = pairs()
    if pair not in known:
        raise typer.BadParameter(f"{pair!r} is none of {', '.join(known)}", param_hint="--pair")
    folder = repository(known[pair], data / pair)
    spreads = measure_loading(known[pair], folder, repeats=repeats, cold=cold)
    name = f"loading, {pair}, {'cold' if cold else 'warm'}"
    if output is not None:
        write_json(output, name, spreads)
    typer.echo(f"{name}, {repeats} rounds\n\n{ratio_table(spreads)}")


if __name__ == "__main__":
    app()
