"""How fast recipes train: images/s, the recipes taking turns in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.circumstances import circumstances
from benchmarks.recipes.definitions import Definitions, Table
from benchmarks.recipes.estimates import MISSING
from benchmarks.recipes.goals import MET, MISSED, UNKNOWN
from benchmarks.recipes.rounds import Rounds, round_key, round_runs
from benchmarks.recipes.runs import chosen
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Entry, Store


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
        found = Rounds.of(definitions, table, section, rounds)
        devices |= {entry["device"] for entry in found.entries}
        first = section.recipes[0]
        for recipe in section.recipes:
            cells = [section.title, definitions.recipes[recipe].title, MISSING, MISSING]
            if found.entries:
                ratios = found.ratios(recipe, first)
                cells[2] = f"{found.speed(recipe):.0f}"
                cells[3] = f"{found.ratio(recipe, first):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(f"| {' | '.join(cells)} | {len(found.entries)} of {found.wanted} |")
        if table.goal is not None:
            titles = [definitions.recipes[recipe].title for recipe in (section.base, first)]
            goal = f"- {section.title}: {titles[0]} {table.goal} times as fast as {titles[1]}"
            ratio = found.ratio(section.base, first)
            outcome = UNKNOWN if ratio is None else f"{MET if ratio >= table.goal else MISSED}, {ratio:.2f}"
            reached.append(f"{goal}: {outcome}.")
    parts = [f"# {table.title}", f"Made by `{command}`."]
    if table.about:
        parts.append(table.about.strip())
    parts.append("\n".join(lines))
    parts.append(f"Measured on: {', '.join(sorted(devices)) or 'not measured yet'}.")
    if reached:
        parts.append("Goals:\n\n" + "\n".join(reached))
    return "\n\n".join(parts) + "\n"
