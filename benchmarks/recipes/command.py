"""The commands `recipes` and `cards`."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.recipes.costs import measure_rounds, render_costs
from benchmarks.recipes.definitions import FOLDER, Definitions, Table, load_definitions
from benchmarks.recipes.engine import check_files, fill
from benchmarks.recipes.processes import ChildFailed, Children
from benchmarks.recipes.runs import Run, runs_of
from benchmarks.recipes.tables import render
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Store

_TABLE = Annotated[
    str,
    typer.Argument(
        help="A table of the definitions: headline, narrow, order, objective, cost, objective-cost, full, real, "
        "texts, minilm, sounds."
    ),
]
_STORE = Annotated[Path, typer.Option(help="The JSON file of all results; tables are written beside it.")]
_DATA = Annotated[Path | None, typer.Option(help="The folder of the data's files, such as train.parquet.")]
_WEIGHTS = Annotated[Path | None, typer.Option(help="The folder of published weights, for pairs that have such.")]
_WORK = Annotated[Path, typer.Option(help="Where teachers and models are trained and kept.")]
_ONLY = Annotated[list[str] | None, typer.Option(help="PAIR/RECIPE, with * and ?; may be given several times.")]
_SEEDS = Annotated[str, typer.Option(help="Seeds, with commas between them.")]
_DEFINITIONS = Annotated[Path, typer.Option(help="The folder of the definitions.")]
_WORK_FOLDER = Path("benchmarks-data/recipes")


def recipes(
    table: _TABLE,
    store: _STORE = Path("model_cards/results.json"),
    data: _DATA = None,
    weights: _WEIGHTS = None,
    work: _WORK = _WORK_FOLDER,
    seeds: _SEEDS = "0,1,2",
    only: _ONLY = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 1,
    table_only: Annotated[bool, typer.Option("--table-only", help="Run nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run what is stored too, and replace it.")] = False,
    definitions: _DEFINITIONS = FOLDER,
) -> None:
    """Train what a table lacks, one process a run, and write the table; a run that is stored is not repeated.

    Ends with status 1 if a run failed; the others are stored and in the table.
    """
    defined = load_definitions(definitions)
    asked = _table(defined, table)
    numbers = seeds_of(seeds)
    results = Store(store)
    failed: dict[str, str] = {}
    if not table_only:
        for section in asked.sections:
            pair = defined.pairs[section.pair]
            refuse_other_files(defined.data[pair.data].files, data, "data")
            refuse_other_files(pair.weights, weights, "weights")
        # Asked to end, a process must end its children too.
        signal.signal(signal.SIGTERM, interrupt)
        with Children(threads) as children:
            workplace = Workplace(work, data, children, weights)
            if asked.form == "cost":
                failed = _rounds(defined, asked, results, workplace, only or [])
            else:
                runs = runs_of(defined, asked, numbers, only or [])
                failed = fill(runs, results, workplace, jobs=jobs, report=_report, again=again)
                # Whoever asks for single runs does not ask for the time of all.
                if asked.times and not only:
                    failed |= _rounds(defined, defined.tables[asked.times], results, workplace, [])
    command = f"python -m benchmarks recipes {table} --store {store} --data DATA"
    if any(defined.pairs[section.pair].weights for section in asked.sections):
        command = f"{command} --weights WEIGHTS"
    if asked.form == "cost":
        text = render_costs(defined, asked, results.read("rounds"), command)
    else:
        command = f"{command} --seeds {seeds}"
        text = render(defined, asked, results.read("runs"), results.read("rounds"), numbers, command)
    path = store.with_name(f"{table}.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    typer.echo(text)
    if failed:
        _report(f"{len(failed)} failed:")
        for name, reason in failed.items():
            _report(f"  {name}: {reason}")
        raise typer.Exit(1)


def _rounds(
    definitions: Definitions, table: Table, store: Store, workplace: Workplace, only: Sequence[str]
) -> dict[str, str]:
    try:
        measure_rounds(definitions, table, store, workplace, only, _report)
    except ChildFailed as error:
        return {"a round": str(error)}
    return {}


def cards(
    table: _TABLE,
    store: _STORE = Path("model_cards/results.json"),
    work: _WORK = _WORK_FOLDER,
    seeds: _SEEDS = "0",
    only: _ONLY = None,
    definitions: _DEFINITIONS = FOLDER,
) -> None:
    """Copy the model cards of a table's stored runs to a folder each beside the store, with what made them."""
    from benchmarks.recipes.cards import publish_card

    defined = load_definitions(definitions)
    stored = Store(store).read("runs")
    for run in _runs(defined, table, seeds, only):
        if run.key not in stored:
            _report(f"{run.training.name}: not stored, no card")
            continue
        pair = defined.pairs[run.pair]
        recipe = defined.recipes[run.recipe].title
        titles = {"pair": f"{pair.title}; {pair.schedule}", "recipe": recipe, "samples": pair.samples}
        command = f"python -m benchmarks recipes {table} --only {run.pair}/{run.recipe} --seeds {run.seed} --data DATA"
        command += " --weights WEIGHTS" if pair.weights else ""
        try:
            path = publish_card(run, stored[run.key], titles, command, Workplace(work, None, _nothing), store.parent)
        except FileNotFoundError as error:
            _report(f"{error}; no card")
        else:
            typer.echo(path)


def choosing(
    data: Annotated[Path, typer.Option(help="The folder of the data's files, such as test.parquet.")],
    table: _TABLE = "order",
    store: _STORE = Path("model_cards/results.json"),
    work: _WORK = _WORK_FOLDER,
    seeds: _SEEDS = "0,1,2",
    only: _ONLY = None,
    max_samples: Annotated[int, typer.Option(min=200, help="How many test images, a half of which chooses.")] = 4000,
    definitions: _DEFINITIONS = FOLDER,
) -> None:
    """How many images it takes to choose an order of blocks, of a table's models that lie in the work folder.

    Writes `TABLE-images.md` beside the store.
    """
    from benchmarks.recipes.choosing import read_model, render_choices

    defined = load_definitions(definitions)
    workplace = Workplace(work, data, _nothing)
    folders = {run.training.name: workplace.model_folder(run.training) for run in _runs(defined, table, seeds, only)}
    found = {name: folder for name, folder in folders.items() if folder is not None}
    if not found:
        raise typer.BadParameter(f"no model of {table} lies there: train them with recipes", param_hint="--work")
    models = []
    for name, folder in found.items():
        models.append(read_model(folder, data, max_samples))
        _report(f"{name}: measured")
    about = (
        "# How many images a choice of schedule takes\n\n"
        f"Made by `python -m benchmarks choosing {table} --work WORK --data DATA`, of {', '.join(found)}.\n\n"
        "How far the area under accuracy over bytes of the chosen order is below that of the best, in points: mean and "
        f"worst of 20 draws of so many of one half of {max_samples:,} test images; the other half judges. Chosen by "
        "the divergence KL(teacher || mask), which needs no labels, and by right answers."
    )
    text = render_choices(models, about)
    store.with_name(f"{table}-images.md").write_text(text, encoding="utf-8")
    typer.echo(text)


def _runs(definitions: Definitions, table: str, seeds: str, only: Sequence[str] | None) -> list[Run]:
    return runs_of(definitions, _table(definitions, table), seeds_of(seeds), only or [])


def _table(definitions: Definitions, name: str) -> Table:
    if name not in definitions.tables:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(definitions.tables)}", param_hint="TABLE")
    return definitions.tables[name]


def seeds_of(seeds: str) -> list[int]:
    """The numbers that an option such as `0,1,2` lists."""
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise typer.BadParameter(f"seeds are whole numbers with commas, got {seeds!r}", param_hint="--seeds") from None


def refuse_other_files(files: Mapping[str, str], folder: Path | None, option: str) -> None:
    """Refuse a folder of `--data` or `--weights` that lacks the files of the definitions, or has others."""
    try:
        check_files(files, folder, option)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{option}") from None


def _report(line: str) -> None:
    typer.echo(line, err=True)


def interrupt(*_: object) -> None:
    """End a process that was asked to end, and its children with it: a handler of SIGTERM."""
    raise KeyboardInterrupt


def _nothing(command: Sequence[str], log: Path) -> None:
    raise ChildFailed("nothing is run for a card")
