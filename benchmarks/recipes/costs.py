"""How fast recipes train: images/s, the recipes taking turns in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.circumstances import circumstances
from benchmarks.recipes.definitions import Definitions, Section, Table
from benchmarks.recipes.estimates import MISSING
from benchmarks.recipes.goals import MET, MISSED, UNKNOWN
from benchmarks.recipes.runs import Run, chosen, digest, run_of
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Entry, Store


def round_runs(definitions: Definitions, table: Table, section: Section) -> dict[str, Run]:
    """What a round of a section trains, by recipe."""
    return {recipe: run_of(definitions, section.pair, recipe, 0, table.options) for recipe in section.recipes}


def round_key(runs: Mapping[str, Run], pair: str, number: int) -> str:
    """What the store files a round under."""
    return f"{pair}-round{number}-{digest({recipe: run.training.identity() for recipe, run in runs.items()})}"


def measure_rounds(
    definitions: Definitions,
    table: Table,
    store: Store,
    workplace: Workplace,
    only: Sequence[str],
    report: Callable[[str], None],
) -> None:
    """Run the rounds that the store has not: in each, every recipe trains for some steps, one after the other.

    A round is stored when it is whole, so that what is compared was measured within minutes. Every second round goes
    in the opposite order.

    Raises:
        ChildFailed: If a training does not succeed.
    """
    for section in table.sections:
        if not any(chosen(section.pair, recipe, only) for recipe in section.recipes):
            continue
        runs = round_runs(definitions, table, section)
        for number in range(table.rounds):
            key = round_key(runs, section.pair, number)
            if key in store.read("rounds"):
                continue
            report(f"{key}: begins")
            speeds: dict[str, float] = {}
            for recipe in section.recipes if number % 2 == 0 else section.recipes[::-1]:
                workplace.train(runs[recipe].training, again=True)
                speeds[recipe] = workplace.trained(runs[recipe].training)["images_per_second"]
            entry = {
                "pair": section.pair,
                "round": number,
                "images_per_second": speeds,
                "options": {recipe: run.training.options for recipe, run in runs.items()},
                **circumstances(),
            }
            store.add("rounds", key, entry)


def render_costs(definitions: Definitions, table: Table, rounds: Mapping[str, Entry], command: str) -> str:
    """The table of speeds: medians over rounds, and how many times as fast as the others the base is."""
    lines = ["| pair | recipe | images/s, median | times as fast as the first, median (lowest to highest) | rounds |"]
    lines.append("|---|---|---|---|---|")
    devices = set()
    reached = []
    for section in table.sections:
        runs = round_runs(definitions, table, section)
        keys = [round_key(runs, section.pair, number) for number in range(table.rounds)]
        found = [rounds[key]["images_per_second"] for key in keys if key in rounds]
        devices |= {rounds[key]["device"] for key in keys if key in rounds}
        for recipe in section.recipes:
            cells = [section.title, definitions.recipes[recipe].title, MISSING, MISSING]
            if found:
                ratios = [speeds[recipe] / speeds[section.recipes[0]] for speeds in found]
                cells[2] = f"{statistics.median(speeds[recipe] for speeds in found):.0f}"
                cells[3] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(f"| {' | '.join(cells)} | {len(found)} of {table.rounds} |")
        ratios = [speeds[section.base] / speeds[section.recipes[0]] for speeds in found]
        base, first = (definitions.recipes[recipe].title for recipe in (section.base, section.recipes[0]))
        goal = f"- {section.title}: {base} {table.goal} times as fast as {first}"
        if ratios and table.goal is not None:
            median = statistics.median(ratios)
            reached.append(f"{goal}: {MET if median >= table.goal else MISSED}, {median:.2f}.")
        else:
            reached.append(f"{goal}: {UNKNOWN}.")
    parts = [f"# {table.title}", f"Made by `{command}`."]
    if table.about:
        parts.append(table.about.strip())
    parts.append("\n".join(lines))
    parts.append(f"Measured on: {', '.join(sorted(devices)) or 'not measured yet'}.")
    if table.goal is not None:
        parts.append("Goals:\n\n" + "\n".join(reached))
    return "\n\n".join(parts) + "\n"
