"""The goals, checked on what has been measured: each as a sentence with the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from benchmarks.recipes import masks
from benchmarks.recipes.estimates import Accuracies, accuracy, beyond_spread, difference

MET, MISSED, UNKNOWN = "met", "**missed**", "not measured yet"


def above_on_every_row(runs: Accuracies, others: Mapping[str, Accuracies], rows: Sequence[str]) -> list[str]:
    """Whether a recipe is above others on every row, a sentence for each other recipe.

    The row of the teacher says nothing about a recipe that leaves the teacher as it is: equal is enough there. Of a
    recipe that trains the student alone, the student's row is all there is.
    """
    return [_above(runs, other, rows, name) for name, other in others.items()]


def _above(runs: Accuracies, other: Accuracies, rows: Sequence[str], name: str) -> str:
    goal = f"Above {name} on every row"
    if {row for accuracies in other.values() for row in accuracies} == {student := masks.student(len(rows[0]))}:
        goal, rows = f"The student above that of {name}", [student]
    found = {row: difference(runs, row, other, row) for row in rows}
    known = {row: estimate for row, estimate in found.items() if estimate is not None}
    if len(known) < len(rows):
        return f"{goal}: {UNKNOWN}."
    smaller = {
        row: estimate for row, estimate in known.items() if estimate.mean < 0 or (estimate.mean == 0 and "S" in row)
    }
    seeds = max(estimate.count for estimate in known.values())
    if not smaller:
        row, least = min(((row, e) for row, e in known.items() if "S" in row), key=lambda pair: pair[1].mean)
        where = f"nearest at `{row}`, " if len(rows) > 1 else ""
        return f"{goal}: {MET}; {where}{least.percent(of=seeds, sign=True)} points."
    listed = ", ".join(f"`{row}` {estimate.percent(of=seeds, sign=True)}" for row, estimate in smaller.items())
    if len(rows) == 1:
        return f"{goal}: {MISSED} ({listed} points)."
    return f"{goal}: {MISSED} on {len(smaller)} of {len(rows)} ({listed} points)."


def no_prefix_dip(runs: Accuracies, num_blocks: int) -> str:
    """Whether every stage is at least as good as the one before it."""
    goal = "Every stage at least as good as the one before"
    stages = masks.stages(num_blocks)
    steps = {later: difference(runs, later, runs, earlier) for earlier, later in pairwise(stages)}
    known = {mask: step for mask, step in steps.items() if step is not None}
    if len(known) < len(steps):
        return f"{goal}: {UNKNOWN}."
    dips = {mask: step for mask, step in known.items() if step.mean < 0}
    seeds = max(step.count for step in known.values())
    if not dips:
        mask, least = min(known.items(), key=lambda pair: pair[1].mean)
        return f"{goal}: {MET}; the smallest step is to `{mask}`, {least.percent(of=seeds, sign=True)} points."
    listed = ", ".join(
        f"`{mask}` {step.percent(of=seeds, sign=True)} points{'' if beyond_spread(step) else ' within the spread'}"
        for mask, step in dips.items()
    )
    return f"{goal}: {MISSED} ({listed})."


def none_below_student(runs: Accuracies, num_blocks: int) -> str:
    """Whether no mask of all 2^N is below the student by more than the spread of the difference over seeds."""
    goal = f"No mask of all {2**num_blocks} below the student beyond the spread"
    student = masks.student(num_blocks)
    measured = masks.mixed({mask for found in runs.values() for mask in found})
    if accuracy(runs, student) is None or len(measured) < 2**num_blocks - 2:
        return f"{goal}: {UNKNOWN}."
    above = {mask: difference(runs, mask, runs, student) for mask in measured}
    known = {mask: estimate for mask, estimate in above.items() if estimate is not None}
    seeds = max(estimate.count for estimate in known.values())
    mask, least = min(known.items(), key=lambda pair: pair[1].mean)
    below = [mask for mask, estimate in known.items() if estimate.mean < 0]
    missed = [mask for mask in below if beyond_spread(known[mask])]
    lowest = f"the lowest is `{mask}`, {least.percent(of=seeds, sign=True)} points from the student"
    if seeds == 1:
        lowest += " (of one seed, which has no spread)"
    if not missed:
        within = f"; {len(below)} below it within the spread" if below else ""
        return f"{goal}: {MET}; {lowest}{within}."
    return f"{goal}: {MISSED} by {len(missed)}; {lowest}."
