"""The picture: accuracy over seconds from the start of a process, all ways in it, a panel for each bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.real import rivals
from benchmarks.real.comparison import Answers, line_of
from benchmarks.speed.plots.timeline import DOTS, WIDTH, steps
from pwl_hf.modeling.repository.files import atomic_write

# By Okabe and Ito, told apart by all eyes; and each has its own dashes.
_STYLES: Mapping[str, tuple[str, str | tuple[int, tuple[int, ...]]]] = {
    rivals.PWL_WAY: ("#0072B2", "-"),
    rivals.RUNTIME_WAY: ("#000000", "-"),
    rivals.RUNGS_WAY: ("#000000", ":"),
    rivals.TEACHER_WAY: ("#D55E00", "--"),
    rivals.SESSION_WAY: ("#999999", "--"),
    rivals.STUDENT_WAY: ("#009E73", ":"),
    rivals.INT8_WAY: ("#CC79A7", "-."),
    rivals.EXITS_WAYS["frozen"]: ("#E69F00", (0, (5, 1))),
    rivals.EXITS_WAYS["trained"]: ("#56B4E9", (0, (3, 1, 1, 1))),
}
_PANEL = 3.4
# Of the seconds, to the right of the last answer.
_MARGIN = 0.06


def draw(answers: Mapping[str, Answers], title: str, path: Path) -> None:
    """Draw a comparison.

    Args:
        answers: What `comparison.compare` gives; at one bandwidth at least.
        title: What stands above it.
        path: The picture, a PNG.
    """
    figure = picture(answers, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS)


def picture(answers: Mapping[str, Answers], title: str) -> Figure:
    """The picture of a comparison."""
    bandwidths = sorted({bandwidth for found in answers.values() for bandwidth in found.seconds}, reverse=True)
    figure = Figure(figsize=(WIDTH, _PANEL * len(bandwidths) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(bandwidths), 1, squeeze=False)[:, 0]
    lines = {}
    for axes, bandwidth in zip(panels, bandwidths, strict=True):
        timed = {way: found for way, found in answers.items() if bandwidth in found.seconds}
        end = (1 + _MARGIN) * max(found.seconds[bandwidth][-1] for found in timed.values())
        # PWL last, so that it lies above the others.
        for way, found in reversed(timed.items()):
            color, dashes = _STYLES[way]
            rows = [
                (second, 100 * accuracy)
                for number, second in enumerate(found.seconds[bandwidth])
                if (accuracy := found.accuracy(number)) is not None
            ]
            if rows:
                lines[way] = steps(axes, rows, end, {"color": color, "linestyle": dashes, "linewidth": 2})
        axes.set_title(f"a Hub at {line_of(bandwidth)}", fontsize="medium", loc="left")
        axes.set(ylabel="accuracy of answers (%)", xlim=(0, end))
        axes.margins(y=0.1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("seconds from the start of a process; dots: answers")
    known = [way for way in answers if way in lines]
    legend = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": "small"}
    figure.legend([lines[way] for way in known], known, **legend)
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    return figure
