"""How accurate a model is at each of its stages, and along any other path.

from pwl_hf.data import DataSource
from pwl_hf.evaluation import evaluate_repository

report = evaluate_repository("org/pwl-vit", DataSource("uoft-cs/cifar10"), "test")
report.evaluation.accuracies  # of the stages, the student's first
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pwl_hf.modeling.lazy import lazy

if TYPE_CHECKING:
    from pwl_hf.evaluation.area import area_over_bytes
    from pwl_hf.evaluation.orders import masks_of
    from pwl_hf.evaluation.report import Report
    from pwl_hf.evaluation.repositories import dataset_title, evaluate_repository, record_metrics
    from pwl_hf.evaluation.results import Comparison, Evaluation, MaskAccuracy
    from pwl_hf.evaluation.running import evaluate_masks, evaluate_stages

# Lazy, for a training script that names an option of these must not wait for torch.
_EXPORTS = {
    "Comparison": "results",
    "Evaluation": "results",
    "MaskAccuracy": "results",
    "Report": "report",
    "area_over_bytes": "area",
    "dataset_title": "repositories",
    "evaluate_masks": "running",
    "evaluate_repository": "repositories",
    "evaluate_stages": "running",
    "masks_of": "orders",
    "record_metrics": "repositories",
}

__all__ = [
    "Comparison",
    "Evaluation",
    "MaskAccuracy",
    "Report",
    "area_over_bytes",
    "dataset_title",
    "evaluate_masks",
    "evaluate_repository",
    "evaluate_stages",
    "masks_of",
    "record_metrics",
]

__getattr__, __dir__ = lazy(__name__, _EXPORTS)
