"""Latency of requests against seconds, while stages arrive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

# The first row; the others are drawn on the same scale.
_COLORS = ("#1f77b4", "#ff7f0e")


def draw(series: Mapping[str, Any], path: Path) -> None:
    """Each request as a dot at its beginning, a line at each change of stage, and the idle median of each stage.

    Args:
        series: What `benchmarks.speed.measures.streaming` gives, by what was running.
        path: The picture.
    """
    figure = Figure(figsize=(8, 2.4 * len(series) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(series), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for panel, (name, found), color in zip(panels, series.items(), _COLORS, strict=True):
        rows = found["requests"]
        panel.scatter([row[0] for row in rows], [row[1] for row in rows], s=5, color=color, linewidths=0)
        begin = 0.0
        ends = [*found["marks"], [max([row[0] for row in rows]), None]]
        stage = 0
        for end, following in ends:
            idle = [row[1] for row in found["idle"] if row[3] == stage]
            panel.hlines(median(idle), begin, max(begin, end), color="black", linewidth=1, zorder=3)
            if following is not None:
                panel.axvline(end, color="0.75", linewidth=0.8, zorder=0)
                panel.annotate(f"{following}", (end, 1), xycoords=("data", "axes fraction"), fontsize=8, va="bottom")
            begin, stage = end, following
        panel.set_title(name, fontsize=9, loc="left", pad=12)
        panel.set_ylabel("ms")
        # What is asked is how many times slower, at each stage.
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds; black: median of each stage while nothing else is done; grey: a stage is reached")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
