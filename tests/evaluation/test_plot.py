"""Pictures: what is on them, and that they come whole."""

from __future__ import annotations

import re
import sys

import pytest

from pwl_hf.evaluation import plot
from pwl_hf.evaluation.orders import masks_of
from pwl_hf.evaluation.report import DatasetEvaluated, Report, RepositoryEvaluated, Settings
from pwl_hf.evaluation.results import Evaluation, MaskAccuracy


def report(orders: str, num_stages: int = 4) -> Report:
    masks = masks_of(orders, num_stages)
    return Report(
        RepositoryEvaluated("repo", "", None, "0" * 64),
        DatasetEvaluated("digits", None, None, "test", None, 100),
        Settings("cpu", "float32", 64),
        orders,
        Evaluation(tuple(MaskAccuracy(mask, 50 + i % 50, 100) for i, mask in enumerate(masks))),
        tuple(masks_of("prefix", num_stages)),
        tuple(1_000_000 * (k + 1) for k in range(num_stages + 1)),
        {},
    )


def texts(path) -> str:
    return " ".join(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_stages_are_drawn_over_their_bytes(tmp_path):
    found = texts(plot.plot_report(report("prefix"), tmp_path / "stages.svg"))
    assert all(mask in found for mask in masks_of("prefix", 4))
    assert "weights loaded (MB)" in found
    assert "digits, split test, 100 images" in found


def test_masks_are_drawn_by_accuracy(tmp_path):
    found = texts(plot.plot_report(report("all"), tmp_path / "masks.svg"))
    names = re.findall(r"\b[ST]{4}\b", found)
    assert names == masks_of("all", 4)  # these accuracies rise in the order of the masks
    assert "the student" in found


def test_so_many_masks_are_points_without_names(tmp_path):
    found = texts(plot.plot_report(report("all", 8), tmp_path / "masks.svg"))
    assert not re.findall(r"\b[ST]{8}\b", found)
    assert "masks" in found


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("PDF", b"%PDF")])
def test_ending_is_the_format(tmp_path, ending, start):
    assert plot.plot_report(report("prefix"), tmp_path / f"a.{ending}").read_bytes().startswith(start)


def test_other_ending_raises(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of \.png, \.svg, \.pdf"):
        plot.plot_report(report("prefix"), tmp_path / "a.jpg")


def test_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self, target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(plot.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot.plot_report(report("prefix"), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_window_system_is_chosen(tmp_path, monkeypatch):
    # Another test of this process may have imported it.
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot.plot_report(report("prefix"), tmp_path / "a.png")
    assert "matplotlib.pyplot" not in sys.modules
