"""What is done once a model is trained: statistics where they help, and what the saved bytes measure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pwl_hf import PWLForImageClassification
from pwl_hf.evaluation import Report, evaluate_repository, record_metrics
from pwl_hf.modeling.routes.batchnorm import batch_norms
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.images.samples import some_batches
from pwl_hf.training.trainer.mask_statistics import MaskChoice, select_statistics

logger = logging.getLogger(__name__)

_BATCH = 128


@torch.no_grad()
def own_statistics(model: PWLForImageClassification, dataset: Any, count: int) -> dict[str, MaskChoice]:
    """Give masks BatchNorm statistics of their own where that measures better on training images.

    Images without labels are measured by the teacher's answers.

    Args:
        model: With everything resident.
        dataset: Training images, not augmented.
        count: How many of them; half estimate and half are measured on.

    Returns:
        What was measured, by mask; empty for networks without BatchNorm, whose images are not read.
    """
    if count == 0 or not any(True for role in ("teacher", "student") for _ in batch_norms(getattr(model, role), role)):
        return {}
    batches, labels = [], []
    for batch in some_batches(dataset, count, _BATCH):
        batches.append(batch["pixel_values"])
        if "labels" in batch:
            labels.append(batch["labels"])
        else:
            labels.append(model.teacher(batch["pixel_values"].to(model.device)).logits.argmax(-1).cpu())
    if len(batches) == 1:
        # Of little data: one half estimates, the other is measured on.
        batches = list(batches[0].chunk(2))
    if len(batches) < 2:
        logger.warning("one training image is too few for statistics of masks: none are estimated")
        return {}
    found = select_statistics(model, batches, torch.cat(labels))
    kept = [mask for mask, choice in found.items() if choice.keeps_own]
    logger.info("statistics of their own: %s", ", ".join(kept) or "no mask is better with them")
    return found


def measure(
    folder: Path,
    data: DataArguments,
    *,
    label_names: Sequence[str] | None = None,
    batch_size: int,
    device: torch.device,
    token: str | None = None,
) -> Report:
    """Measure every stage of the saved files, stepped through as a server would, and enter it into manifest and card.

    Args:
        folder: The repository.
        data: What is measured on.
        label_names: Its labels in the order of the training split's, if it was opened with any.
        batch_size: Images at once.
        device: Where.
        token: For a private data set.
    """
    source, split = replace(data.eval_source(token), label_names=label_names), str(data.eval_split)
    report = evaluate_repository(folder, source, split, batch_size=batch_size, device=str(device), token=token)
    record_metrics(folder, report)
    for stage, accuracy in enumerate(report.evaluation.accuracies):
        logger.info("stage %d: %s accuracy %.4f on %d images", stage, split, accuracy, report.evaluation.total)
    return report
