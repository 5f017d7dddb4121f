"""The command `real`."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.circumstances import circumstances
from benchmarks.recipes.command import interrupt, refuse_other_files
from benchmarks.recipes.definitions import Definitions, load_definitions
from benchmarks.recipes.processes import Children
from benchmarks.recipes.runs import Run, Training, digest, run_of
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Entry, Store
from pwl_hf.modeling.repository.files import write_text

STEPS = ("exits", "accuracies", "seconds")
_MB = 1e6


def real(
    pair: Annotated[str, typer.Option(help="A pair of published weights, of the definitions of `recipes`.")] = (
        "real-eighth"
    ),
    recipe: Annotated[str, typer.Option(help="The recipe of PWL's run.")] = "quick",
    seed: Annotated[int, typer.Option(help="The run's seed.")] = 0,
    store: Annotated[Path, typer.Option(help="The results of `recipes`, with PWL's run.")] = Path(
        "model_cards/results.json"
    ),
    output: Annotated[Path, typer.Option(help="The folder of results.")] = Path("benchmarks/results"),
    data: Annotated[Path | None, typer.Option(help="The folder of the data's files.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The folder of published weights.")] = None,
    work: Annotated[Path, typer.Option(help="Where `recipes` trained, and all else is made and kept.")] = (
        Path("benchmarks-data/recipes")
    ),
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(STEPS)}; may be given several times.")] = None,
    bandwidth: Annotated[list[float] | None, typer.Option(help="Of the Hub, in MB/s: 20, and 0.2 (a phone).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes of each way.")] = 9,
    table_only: Annotated[bool, typer.Option("--table-only", help="Measure nothing.")] = False,
) -> None:
    """Hold PWL on a pair of published weights against what one could do instead: `real.json`, a table and a picture.

    Early exit is trained and rivals are measured, unless that is stored; then fresh processes are timed.
    """
    defined = load_definitions()
    known = [name for name, entry in defined.pairs.items() if entry.published is not None]
    for value, names, option in ((pair, known, "pair"), *((step, STEPS, "only") for step in only or [])):
        if value not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}", param_hint=f"--{option}")
    run = run_of(defined, pair, recipe, seed)
    found = Store(store).read("runs").get(run.key)
    if found is None:
        raise typer.BadParameter(f"{store} has no {run.key}: train it by `recipes real`", param_hint="--store")
    rivals = Store(output / "real.json", kinds=("sizes", "accuracies", "seconds"))
    if not table_only:
        refuse_other_files(defined.data[defined.pairs[pair].data].files, data, "data")
        refuse_other_files(defined.pairs[pair].weights, weights, "weights")
        # Asked to end, a process must end its children too.
        signal.signal(signal.SIGTERM, interrupt)
        with Children() as children:
            workplace = Workplace(work, data, children, weights)
            lines = [_MB * line for line in bandwidth or (20.0, 0.2)]
            _measure(defined, run, workplace, rivals, only or STEPS, str(data), work / "real", lines, repeats)
    _write(defined, run, found, rivals, output)


def _measure(
    definitions: Definitions,
    run: Run,
    workplace: Workplace,
    rivals: Store,
    steps: Sequence[str],
    dataset: str,
    folder: Path,
    bandwidths: Sequence[float],
    repeats: int,
) -> None:
    """Measure what is asked for, and store it."""
    from benchmarks.real.measures import count_right, labelled_images, time_ways
    from benchmarks.real.rivals import PWL_WAY, exits_trainings, ways

    # 1. Early exit, and the files of all ways.
    exits = exits_trainings(definitions, run.pair)
    for training in exits.values() if "exits" in steps else ():
        _say(f"{training.name}: begins, unless it is done")
        workplace.train(training)
    known = ways(run, exits, workplace, folder)
    rivals.add("sizes", run.key, {name: list(way.sizes) for name, way in known.items()})
    # 2. What answers are worth that are not in PWL's run, as its stages, the teacher's and the student's are.
    stored, images = rivals.read("accuracies"), None
    for name, key in _rival_keys(run, exits).items():
        if "accuracies" in steps and name in known and key not in stored:
            _say(f"{name}: images are counted")
            images = images or labelled_images(dataset, known[PWL_WAY].folder)
            rivals.add("accuracies", key, count_right(name, known[name].folder, images) | circumstances())
    # 3. Seconds, which no earlier ones stand in for.
    for bandwidth in bandwidths if "seconds" in steps else ():
        _say(f"fresh processes at {bandwidth / _MB:g} MB/s")
        timed = {"ways": time_ways(known, folder, bandwidth, repeats)}
        rivals.add("seconds", _seconds_key(run, bandwidth), timed | {"bandwidth": bandwidth} | circumstances())


def _write(definitions: Definitions, run: Run, found: Entry, rivals: Store, output: Path) -> None:
    """Write the table, and the picture if seconds are known."""
    from benchmarks.real.comparison import compare, render
    from benchmarks.real.plot import draw
    from benchmarks.real.rivals import exits_trainings

    sizes = rivals.read("sizes").get(run.key)
    if sizes is None:
        raise typer.BadParameter("nothing has been measured yet: leave it out", param_hint="--table-only")
    counted = rivals.read("accuracies")
    keys = _rival_keys(run, exits_trainings(definitions, run.pair))
    seconds = [entry for key, entry in rivals.read("seconds").items() if key.startswith(f"{run.key} ")]
    answers = compare(
        found,
        sizes,
        {name: counted[key] for name, key in keys.items() if key in counted},
        {entry["bandwidth"]: entry["ways"] for entry in seconds},
    )
    pair, recipe = definitions.pairs[run.pair], definitions.recipes[run.recipe].title
    command = f"python -m benchmarks real --pair {run.pair} --recipe {run.recipe} --seed {run.seed}"
    about = [
        f"Made by `{command} --data DATA --weights WEIGHTS`.",
        f"{pair.title}; {pair.schedule}. PWL: {recipe}, seed {run.seed}. {found['data']}, {found['test_images']:,} "
        "test images.",
        "Seconds run from the start of a process, imports included, to an answer of one image, from a Hub with 20 ms "
        "latency and an empty cache; one thread; medians of "
        f"{min((len(way['answers']) for entry in seconds for way in entry['ways'].values()), default=0)} processes, "
        "the ways taking turns. Early exit fetches the next block while one answers.",
    ]
    title = f"A pair on published figures: {run.pair}"
    name = output / f"{run.pair}-{run.recipe}-seed{run.seed}"
    text = render(answers, title, about)
    write_text(name.with_suffix(".md"), text)
    if seconds:
        draw(answers, pair.title.partition(";")[0], name.with_suffix(".png"))
    typer.echo(text)


def _rival_keys(run: Run, exits: Mapping[str, Training]) -> dict[str, str]:
    """What accuracies besides the run's own are stored under, by the name of their way."""
    from benchmarks.real.rivals import INT8_WAY, RUNGS_WAY

    teacher = run.training.teacher
    assert teacher is not None
    keys = {RUNGS_WAY: f"rungs-{run.key}", INT8_WAY: f"int8-{digest(teacher.identity())}"}
    return keys | {name: training.key for name, training in exits.items()}


def _seconds_key(run: Run, bandwidth: float) -> str:
    return f"{run.key} {bandwidth:.0f}"


def _say(line: str) -> None:
    typer.echo(line, err=True)
