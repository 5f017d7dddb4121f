"""The `digits` command: what `pwl-hf demo` ends with, over seeds and instruction sets.

Sums come in another order with other instructions, and a training is another one after some steps. ATen's instruction
set imitates on one machine what others would say.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.circumstances import circumstances
from benchmarks.recipes.command import interrupt, seeds_of
from benchmarks.recipes.outputs import read_training
from benchmarks.recipes.processes import Children
from benchmarks.recipes.runs import digest
from benchmarks.store import Entry, Store
from pwl_hf.modeling.repository.files import write_text
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.training.command_line import RECIPES, read_recipe

KIND = "demos"
# From the least to the most; a machine has all up to its own.
CAPABILITIES = ("default", "avx2", "avx512")
_LISTED = ("seed", "capability")
_RECIPES = ("vit-digits-teacher", "vit-digits")


def digits(
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "0,1,2,3,4",
    capabilities: Annotated[
        str, typer.Option(help="Values of ATEN_CPU_CAPABILITY, with commas between them.")
    ] = ",".join(CAPABILITIES),
    store: Annotated[Path, typer.Option(help="The JSON file of results; the table is written beside it.")] = Path(
        "model_cards/digits.json"
    ),
    work: Annotated[Path, typer.Option(help="Where the models are trained and kept.")] = Path("benchmarks-data/digits"),
    table_only: Annotated[bool, typer.Option("--table-only", help="Run nothing.")] = False,
) -> None:
    """Run `pwl-hf demo` for each seed and instruction set that the store lacks, one by one, and write the table."""
    numbers, names = seeds_of(seeds), capabilities.split(",")
    results = Store(store, kinds=(KIND,))
    if not table_only:
        _check(names)
        signal.signal(signal.SIGTERM, interrupt)
        for seed, name in product(numbers, names):
            if (key := key_of(seed, name)) not in results.read(KIND):
                typer.echo(f"{key}: begins", err=True)
                with Children(environment={"ATEN_CPU_CAPABILITY": name}) as children:
                    results.add(KIND, key, _measured(seed, name, work / key, children))
    stored = results.read(KIND)
    wanted = [key_of(seed, name) for seed in numbers for name in names]
    command = f"python -m benchmarks digits --seeds {seeds} --capabilities {capabilities}"
    text = render([stored[key] for key in wanted if key in stored], len(wanted), command)
    write_text(store.with_suffix(".md"), text)
    typer.echo(text)


def key_of(seed: int, capability: str) -> str:
    """What the store files a run under: a changed recipe is another run."""
    recipes = {name: read_recipe(RECIPES / f"{name}.yaml") for name in _RECIPES}
    return f"seed{seed}-{capability}-{digest(recipes)}"


def render(entries: Sequence[Entry], wanted: int, command: str) -> str:
    """The table: of each stage the lowest, the median and the highest accuracy.

    Args:
        entries: The store's.
        wanted: How many there should be.
        command: What made it.
    """
    parts = ["# The demo's digits", f"Made by `{command}`."]
    if not entries:
        return "\n\n".join([*parts, "Not measured yet."]) + "\n"
    listed = {name: ", ".join(map(str, dict.fromkeys(entry[name] for entry in entries))) for name in _LISTED}
    images = f"{entries[0]['test_images']} test images of {entries[0]['data']}"
    parts.append(
        f"{len(entries)} of {wanted} runs of `pwl-hf demo`: seeds {listed['seed']}; ATEN_CPU_CAPABILITY "
        f"{listed['capability']}. Accuracy on {images}, in percent."
    )
    # 1. Each stage over all runs.
    lines = ["| stage | lowest | median | highest |", "|---|---|---|---|"]
    masks = list(entries[0]["accuracy"])
    for mask in masks:
        values = [100 * entry["accuracy"][mask] for entry in entries]
        lines.append(f"| `{mask}` | {min(values):.1f} | {statistics.median(values):.1f} | {max(values):.1f} |")
    # 2. Steps from a stage to the next, run by run.
    falls: list[str] = []
    for entry in entries:
        for earlier, later in pairwise(masks):
            if (step := entry["accuracy"][later] - entry["accuracy"][earlier]) < 0:
                falls.append(f"{100 * step:.1f} (`{later}`, seed {entry['seed']}, {entry['capability']})")
    steps = len(entries) * (len(masks) - 1)
    parts += [
        "\n".join(lines),
        f"{len(falls)} of {steps} steps to the next stage go down: {', '.join(falls) or 'none'}.",
    ]
    parts.append(f"Measured on: {', '.join(sorted({entry['device'] for entry in entries}))}.")
    return "\n\n".join(parts) + "\n"


def _measured(seed: int, capability: str, folder: Path, children: Children) -> Entry:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = folder / "digits-pwl"
    command = ["-m", "pwl_hf.cli", "demo", "--seed", str(seed), "--quiet", "--output"]
    children([sys.executable, *command, str(model)], folder / "log.txt")
    # On the files, as the demo itself does: the metrics in the manifest are those of the saved bytes.
    stages = Repository.open(model).manifest().stages
    return {
        "seed": seed,
        "capability": capability,
        "data": stages[0].metrics[0].dataset,
        "test_images": stages[0].metrics[0].n,
        "accuracy": {stage.sources: stage.metrics[0].value for stage in stages},
        "seconds": read_training(model)["seconds"],
        "command": " ".join(["python", *command, "DIR"]),
        **circumstances(),
    }


def _check(names: Sequence[str]) -> None:
    import torch

    own = torch.backends.cpu.get_cpu_capability().lower()
    here = CAPABILITIES[: CAPABILITIES.index(own) + 1] if own in CAPABILITIES else CAPABILITIES[:1]
    for name in names:
        # ATen takes its word for it: instructions that are not there would end the process.
        if name not in here:
            raise typer.BadParameter(
                f"{name!r} is none of {', '.join(here)}, which this machine has", param_hint="--capabilities"
            )
