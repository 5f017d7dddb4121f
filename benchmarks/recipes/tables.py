"""Tables of results as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.recipes import goals, masks
from benchmarks.recipes.definitions import Definitions, Section, Table
from benchmarks.recipes.estimates import MISSING, Accuracies, Estimate, accuracy, difference
from benchmarks.recipes.results import Results
from benchmarks.recipes.rounds import Rounds
from benchmarks.recipes.schedules import schedules_section
from benchmarks.store import Entry


def render(
    definitions: Definitions,
    table: Table,
    runs: Mapping[str, Entry],
    rounds: Mapping[str, Entry],
    seeds: Sequence[int],
    command: str,
) -> str:
    """A table of accuracies, whole or in part: what has not been measured is visibly empty.

    Args:
        definitions: What is defined.
        table: The table, of any form but `cost`.
        runs: The store's runs by key.
        rounds: The store's rounds by key, for the time of `variants`.
        seeds: The seeds.
        command: What made it.
    """
    parts = [f"# {table.title}", f"Made by `{command}`."]
    if table.about:
        parts.append(table.about.strip())
    for section in table.sections:
        results = Results.of(definitions, section, seeds, runs)
        parts.append(f"## {section.title}")
        pair = definitions.pairs[section.pair]
        parts.append(f"{pair.title}; {pair.schedule}.\n{results.about()}")
        if table.form == "orders":
            parts.append(orders_section(definitions, section, results))
        elif table.form == "schedules":
            parts.append(schedules_section(definitions, section, results))
        else:
            timed = definitions.tables[table.times]
            (alike,) = (s for s in timed.sections if (s.title, s.pair) == (section.title, section.pair))
            turns = Rounds.of(definitions, timed, alike, rounds)
            parts.append(variants_section(definitions, section, results, turns))
    return "\n\n".join(parts) + "\n"


def orders_section(definitions: Definitions, section: Section, results: Results) -> str:
    """A row for each mask of the three orders, a column for each recipe, and the goals of ours beneath."""
    accuracies = {recipe: results.accuracies(recipe) for recipe in section.recipes}
    n = results.num_blocks
    groups = masks.rows(n)
    titles = {recipe: definitions.recipes[recipe].title for recipe in section.recipes}
    lines = [_row(["order", "mask", *titles.values()]), _rule(2 + len(titles))]
    for order, rows in groups.items():
        for mask in rows:
            cells = _cells([accuracy(accuracies[recipe], mask) for recipe in section.recipes], len(results.seeds))
            lines.append(_row([order, f"`{mask}`", *cells]))
    # Variants of the base stand beside it: they have the same goals, and are nothing that it must beat.
    variants = [recipe for recipe in section.recipes if definitions.recipes[recipe].extends == section.base]
    ours = [section.base, *variants]
    others = {titles[recipe]: accuracies[recipe] for recipe in section.recipes if recipe not in ours}
    every_row = [mask for rows in groups.values() for mask in rows]
    parts = ["\n".join(lines)]
    for recipe in ours:
        found = [
            *goals.above_on_every_row(accuracies[recipe], others, every_row),
            goals.no_prefix_dip(accuracies[recipe], n),
            goals.none_below_student(accuracies[recipe], n),
        ]
        parts.append(f"Goals, for {titles[recipe]}:")
        parts.append("\n".join(f"- {sentence}" for sentence in found))
    return "\n\n".join(parts)


def variants_section(definitions: Definitions, section: Section, results: Results, turns: Rounds) -> str:
    """A row for each recipe: the student, the stages, all other masks, the lowest mask, and the time.

    The time is that of an image, relative to the base's, of the rounds in which both took turns.
    """
    n = results.num_blocks
    student = masks.student(n)
    stages = masks.mixed(masks.stages(n))

    def others(found: Mapping[str, float]) -> list[str]:
        return [mask for mask in masks.mixed(found) if mask not in stages]

    base = results.accuracies(section.base)
    base_title = definitions.recipes[section.base].title
    head = ["recipe", "student", f"student, against {base_title}", f"stages 1 to {n - 1}", "other mixed masks"]
    time_head = f"time, relative, {len(turns.entries)} of {turns.wanted} rounds"
    lines = [_row([*head, "lowest mask, against the student", time_head]), _rule(len(head) + 2)]
    columns: list[list[Estimate | None]] = [[], [], []]
    signed: list[list[Estimate | None]] = [[], []]
    for recipe in section.recipes:
        found = results.accuracies(recipe)
        columns[0].append(accuracy(found, student))
        columns[1].append(_mean_over(found, lambda _: stages))
        columns[2].append(_mean_over(found, others))
        signed[0].append(None if recipe == section.base else difference(found, student, base, student))
        signed[1].append(_lowest(found, student))
    count = len(results.seeds)
    plain = [_cells(column, count) for column in columns]
    relative = [[_text(cell, count, sign=True) for cell in column] for column in signed]
    for i, recipe in enumerate(section.recipes):
        time = turns.ratio(section.base, recipe)
        cells = [plain[0][i], relative[0][i], plain[1][i], plain[2][i], relative[1][i]]
        cells.append(MISSING if time is None else f"{time:.2f}")
        lines.append(_row([definitions.recipes[recipe].title, *cells]))
    return "\n".join(lines)


def _mean_over(runs: Accuracies, chosen: Callable[[Mapping[str, float]], Sequence[str]]) -> Estimate | None:
    values = []
    for _, found in sorted(runs.items()):
        present = [found[mask] for mask in chosen(found) if mask in found]
        if present:
            values.append(sum(present) / len(present))
    return Estimate.of(values)


def _lowest(runs: Accuracies, student: str) -> Estimate | None:
    """The mask that is lowest by its mean over seeds, against the student."""
    mixed = masks.mixed({mask for found in runs.values() for mask in found})
    found = [estimate for mask in mixed if (estimate := difference(runs, mask, runs, student)) is not None]
    return min(found, key=lambda estimate: estimate.mean) if found else None


def _cells(estimates: Sequence[Estimate | None], seeds: int) -> list[str]:
    """The cells of a row or column, the best in bold where there is something to be better than."""
    means = [estimate.mean for estimate in estimates if estimate is not None]
    best = max(means) if len(means) > 1 else None
    texts = [_text(estimate, seeds) for estimate in estimates]
    return [
        f"**{text}**" if estimate is not None and estimate.mean == best else text
        for estimate, text in zip(estimates, texts, strict=True)
    ]


def _text(estimate: Estimate | None, seeds: int, sign: bool = False) -> str:
    return MISSING if estimate is None else estimate.percent(of=seeds, sign=sign)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns
