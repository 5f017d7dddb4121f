"""What answers at which second, and below it with how much memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.speed.measures.alternatives import INT8_WAY, PWL_WAY, STUDENT_WAY, TEACHER_WAY
from pwl_hf.modeling.repository.files import atomic_write

# By Okabe and Ito, told apart by all eyes; and each has its own dashes.
_STYLES: Mapping[str, tuple[str, str, str]] = {
    PWL_WAY: ("PWL", "#0072B2", "-"),
    TEACHER_WAY: ("teacher alone", "#D55E00", "--"),
    STUDENT_WAY: ("student alone", "#009E73", ":"),
    INT8_WAY: ("teacher in int8, then in fp32", "#CC79A7", "-."),
}
# 800 pixels wide, and sharp on screens with two dots a pixel.
WIDTH, DOTS = 8.0, 200
# Of the seconds, to the right of the last event.
_MARGIN = 0.06


def draw(series: Mapping[str, Any], path: Path) -> None:
    """Draw a time line.

    Args:
        series: What `benchmarks.speed.measures.timeline` gives.
        path: The picture.
    """
    figure = picture(series)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=DOTS)


def picture(series: Mapping[str, Any]) -> Figure:
    """The picture of a time line.

    With accuracies it is that of tiny networks, whose memory is lost in that of Python: it is left out.
    """
    with_memory = series["level"] != "accuracy"
    figure = Figure(figsize=(WIDTH, 5.2 if with_memory else 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    heights = (3, 2) if with_memory else (1,)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    ways = series["ways"]
    end = (1 + _MARGIN) * max(row[0] for way in ways.values() for row in (*way["answers"], *way["memory"]))
    lines = {}
    # PWL last, so that it lies above the others.
    for name in reversed(ways):
        _, color, dashes = _STYLES[name]
        look = {"color": color, "linestyle": dashes, "linewidth": 2}
        lines[name] = steps(panels[0], ways[name]["answers"], end, look)
        if with_memory:
            seconds, _, proportional = zip(*ways[name]["memory"], strict=True)
            panels[1].plot([*seconds, end], [*proportional, proportional[-1]], **look)
    if with_memory:
        # Once all lines are there: from then on the limits stay.
        panels[1].set(ylabel="memory (MB)", ylim=(0, None))
    _name_levels(panels[0], series)
    panels[-1].set(xlabel="seconds, imports done before; dots: answers", xlim=(0, end))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    known = [name for name in _STYLES if name in ways]
    figure.legend(
        [lines[name] for name in known],
        [_STYLES[name][0] for name in known],
        loc="outside lower center",
        ncols=len(known),
        frameon=False,
    )
    panels[0].set_title(_title(series), fontsize="medium", loc="left")
    return figure


def steps(axes: Axes, rows: Sequence[Sequence[float]], end: float, look: Mapping[str, Any]) -> Line2D:
    """Draw what answers from the first answer on; before it nothing does.

    Args:
        axes: Where.
        rows: The second and the level of each answer.
        end: The second up to which the last level is drawn.
        look: Colour and dashes.
    """
    seconds, levels = zip(*rows, strict=True)
    (line,) = axes.plot(
        [*seconds, end],
        [*levels, levels[-1]],
        drawstyle="steps-post",
        marker="o",
        markevery=list(range(len(rows))),
        markersize=5,
        **look,
    )
    return line


def _name_levels(axes: Axes, series: Mapping[str, Any]) -> None:
    if series["level"] == "accuracy":
        axes.set_ylabel("accuracy of answers (%)")
        axes.margins(y=0.1)
        return
    count = int(max(row[1] for row in series["ways"][TEACHER_WAY]["answers"]))
    names = {0: "the student", count: "the teacher"}
    axes.set_yticks(range(count + 1), [names.get(k, f"{k} of {count} blocks") for k in range(count + 1)])
    axes.set(ylabel="what answers", ylim=(-0.3, count + 0.3))


def _title(series: Mapping[str, Any]) -> str:
    bandwidth, latency = series["bandwidth"], 1000 * series["latency"]
    line = f"{bandwidth / 1e6:.0f} MB/s" if bandwidth >= 1e6 else f"{bandwidth / 1e3:.0f} kB/s"
    scaled = ", a line as narrow as these networks are small" if series["level"] == "accuracy" else ""
    return f"{series['pair']}, from a Hub at {line} and {latency:.0f} ms{scaled}"
