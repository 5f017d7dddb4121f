"""An evaluation, or a choice of schedule, as a table on the terminal."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pwl_hf.evaluation.intervals import Interval
from pwl_hf.evaluation.report import Report
from pwl_hf.modeling.plain import plain
from pwl_hf.modeling.publishing.model_card import human_bytes

if TYPE_CHECKING:
    from pwl_hf.scheduling import ScheduleReport


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a row a mask, then what they come to.

    Intervals are in percent, at 95 %: of the accuracy, and of its difference from the student's and from that of the
    stage before, over the same images.

    Args:
        report: What was measured.
        console: Where to print; the terminal by default.
    """
    console = console or Console()
    in_steps = report.orders == "prefix"
    columns = ["sources", "so far", "accuracy", "interval", "over student", "over previous"]
    table = Table(*(name for name in columns if in_steps or name not in ("so far", "over previous")))
    for mask in report.evaluation.masks:
        row = [mask.sources]
        row += [human_bytes(report.bytes_at(mask) or 0)] if in_steps else []
        row += [f"{mask.accuracy:.2%}", _interval(mask.interval)]
        row += ["-" if c is None else _interval(c.interval) for c in (mask.over_student, mask.over_previous)]
        table.add_row(*row[: len(table.columns)])
    console.print(table)
    for line in _remarks(report):
        # As it is: paths are not broken, and brackets in them are no markup.
        console.print(plain(line), soft_wrap=True, highlight=False, markup=False)


def print_schedule(report: ScheduleReport, data: str, console: Console | None = None) -> None:
    """Print both schedules side by side, stage by stage, then what they come to.

    Args:
        report: What was found.
        data: What the samples are called.
        console: Where to print; the terminal by default.
    """
    console = console or Console()
    table = Table("stage", "now", "so far", "accuracy", "best", "so far", "accuracy")
    sides = [zip(f.masks, f.total_bytes, f.accuracies, strict=True) for f in (report.present, report.best)]
    for stage, row in enumerate(zip_longest(*sides)):
        cells = [("-", "-", "-") if s is None else (s[0], human_bytes(s[1]), f"{s[2]:.2%}") for s in row]
        table.add_row(str(stage), *cells[0], *cells[1])
    console.print(table)
    for line in _schedule_remarks(report, data):
        console.print(plain(line), soft_wrap=True, highlight=False, markup=False)


def _schedule_remarks(report: ScheduleReport, data: str) -> list[str]:
    gain = report.best.area - report.present.area
    lines = [
        f"{report.num_masks} masks, chosen by {report.num_chosen_by:,} {report.samples} and judged by "
        f"{report.num_judged_by:,} others: {data}.",
        f"Area under the accuracy over the bytes: {report.present.area:.4f} now, {report.best.area:.4f} at best, "
        f"{gain:+.4f} (95 %: {report.gain.low:+.4f} to {report.gain.high:+.4f}).",
    ]
    if report.best.masks == report.present.masks:
        return [*lines, "No order has a greater area: the schedule stays."]
    if not report.is_better:
        return [*lines, f"That is no more than {report.samples} differ by: the schedule stays."]
    if report.without_statistics:
        lines.append(f"Without BatchNorm statistics of their own: {', '.join(report.without_statistics)}.")
    if report.unmeasured:
        lines.append(f"Without an accuracy in the manifest: {', '.join(report.unmeasured)}; see pwl-hf evaluate.")
    if report.had_graphs:
        lines.append("Its ONNX graphs are of the stages before and go: pwl-hf export makes those of the new ones.")
    return [*lines, "The schedule was written." if report.written else "Nothing was written."]


def _interval(found: Interval) -> str:
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}"


def _remarks(report: Report) -> list[str]:
    dataset, evaluation = report.dataset, report.evaluation
    measured = f"{evaluation.total:,} {dataset.samples}: {dataset.name}, split {dataset.split}"
    lines = [f"{measured}. Intervals are in percent, at 95 %."]
    for title, name in (("Macro F1", "macro_f1"), ("F1 of spans", "span_f1")):
        found = [getattr(mask, name) for mask in report.stages]
        if found and None not in found:
            lines.append(f"{title} of the stages, in percent: {', '.join(f'{100 * value:.1f}' for value in found)}.")
    if below := evaluation.below_student:
        surely = [m.sources for m in below if m.over_student is not None and m.over_student.interval.high < 0]
        lines.append(
            f"{len(below)} of {len(evaluation.masks)} masks below the student: {', '.join(m.sources for m in below)}; "
            f"beyond the 95 % interval {', '.join(surely) or 'none'}."
        )
    else:
        lines.append("No mask is below the student.")
    if report.area is not None:
        lines.append(
            f"Area under the accuracy over the bytes: {report.area:.4f}. "
            + ("No stage is below the one before it." if report.monotone else "Some stage is below the one before it.")
        )
    return lines
