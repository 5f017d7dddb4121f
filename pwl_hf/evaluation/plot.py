"""An evaluation as a picture: the stages over their bytes, or masks by accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pwl_hf.evaluation.report import Report
from pwl_hf.evaluation.results import MaskAccuracy
from pwl_hf.modeling.errors import PWLError
from pwl_hf.modeling.repository.files import atomic_write

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise PWLError('a plot needs the package matplotlib: pip install "pwl-hf[evaluate]"') from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))
# More masks than this are points without names.
_NAMED = 128


def check_plot_path(path: str | Path) -> None:
    """Refuse the name of a picture that cannot be drawn.

    Raises:
        ValueError: With the endings that there are.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"the plot {str(path)!r} must end in one of {', '.join(FORMATS)}")


def plot_report(report: Report, path: str | Path) -> Path:
    """Draw the accuracy over the bytes loaded, for stages; for other orders the masks by their accuracy.

    The file comes into place whole.

    Args:
        report: What was measured.
        path: The picture; its ending is its format.

    Raises:
        ValueError: For a format that there is not.
    """
    check_plot_path(path)
    # Without pyplot, which would choose a window system for the whole process.
    count = len(report.evaluation.masks)
    in_steps = report.orders == "prefix"
    height = 4.0 if in_steps else 1.5 + 0.18 * min(count, _NAMED)
    figure = Figure(figsize=(6, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    (_draw_stages if in_steps else _draw_masks)(axes, report)
    axes.grid(alpha=0.3)
    dataset = report.dataset
    axes.set_title(
        f"{Path(dataset.name).name}, split {dataset.split}, {dataset.n:,} {dataset.samples}", fontsize="medium"
    )
    with atomic_write(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:].lower(), dpi=150)
    return Path(path)


def _draw_stages(axes: Axes, report: Report) -> None:
    masks = report.evaluation.masks
    size, unit = next((size, unit) for size, unit in _UNITS if report.total_bytes[-1] >= size)
    x, y = [total / size for total in report.total_bytes], [100 * mask.accuracy for mask in masks]
    axes.errorbar(x, y, yerr=_errors(masks), marker="o", drawstyle="steps-post", elinewidth=1, capsize=3)
    for mask, at, value in zip(masks, x, y, strict=True):
        axes.annotate(mask.sources, (at, value), textcoords="offset points", xytext=(6, -12))
    axes.set(xlabel=f"weights loaded ({unit})", ylabel="accuracy (%)")
    axes.margins(0.12, 0.18)


def _draw_masks(axes: Axes, report: Report) -> None:
    masks = sorted(report.evaluation.masks, key=lambda mask: mask.accuracy)
    student = next((mask for mask in masks if set(mask.sources) == {"S"}), None)
    rows: Any = range(len(masks))
    axes.errorbar(
        [100 * mask.accuracy for mask in masks],
        rows,
        xerr=_errors(masks),
        fmt="o",
        markersize=4,
        elinewidth=1,
        capsize=2,
    )
    if student is not None:
        axes.axvline(100 * student.accuracy, color="gray", linestyle="--", label="the student")
        axes.legend(loc="lower right")
    axes.set(xlabel="accuracy (%)", ylim=(-1, len(masks)))
    if len(masks) <= _NAMED:
        axes.set_yticks(rows, [mask.sources for mask in masks], family="monospace", fontsize="small")
    else:
        axes.set_ylabel("masks")


def _errors(masks: Any) -> list[list[float]]:
    """The distances down and up from each accuracy to the ends of its interval, in percent."""
    found: list[MaskAccuracy] = list(masks)
    below = [100 * (mask.accuracy - mask.interval.low) for mask in found]
    above = [100 * (mask.interval.high - mask.accuracy) for mask in found]
    return [below, above]
