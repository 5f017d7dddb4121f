"""What is done once a model is trained: statistics where they help, and what the saved bytes measure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pwl_hf.evaluation import Report, evaluate_repository, record_metrics
from pwl_hf.modeling import PWLPreTrainedModel
from pwl_hf.modeling.finite import on_device
from pwl_hf.modeling.routes.batchnorm import batch_norms
from pwl_hf.training.data_arguments import DataArguments
from pwl_hf.training.samples import some_batches, without_answers
from pwl_hf.training.trainer.mask_statistics import MaskChoice, select_statistics

logger = logging.getLogger(__name__)

_BATCH = 128


@torch.no_grad()
def own_statistics(model: PWLPreTrainedModel, dataset: Any, count: int) -> dict[str, MaskChoice]:
    """Give masks BatchNorm statistics of their own where that measures better on training images.

    Samples without labels are measured by the teacher's answers.

    Args:
        model: With everything resident.
        dataset: Training samples, not augmented.
        count: How many of them; half estimate and half are measured on.

    Returns:
        What was measured, by mask; empty for networks without BatchNorm, whose samples are not read.
    """
    if count == 0 or not any(True for role in ("teacher", "student") for _ in batch_norms(getattr(model, role), role)):
        return {}
    batches, labels = [], []
    for batch in some_batches(dataset, count, _BATCH):
        inputs = without_answers(batch)
        batches.append(inputs)
        if "labels" in batch:
            labels.append(batch["labels"])
        else:
            labels.append(model.teacher(**on_device(inputs, model.device)).logits.argmax(-1).cpu())
    if len(batches) == 1:
        # Of little data: one half estimates, the other is measured on.
        halves = {name: values.chunk(2) for name, values in batches[0].items()}
        batches = [{name: parts[i] for name, parts in halves.items()} for i in range(min(map(len, halves.values())))]
    if len(batches) < 2:
        logger.warning("one training sample is too few for statistics of masks: none are estimated")
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
        batch_size: Samples at once.
        device: Where.
        token: For a private data set.
    """
    source, split = replace(data.eval_source(token), label_names=label_names), str(data.eval_split)
    report = evaluate_repository(folder, source, split, batch_size=batch_size, device=str(device), token=token)
    record_metrics(folder, report)
    for stage, accuracy in enumerate(report.evaluation.accuracies):
        count, samples = report.evaluation.total, report.dataset.samples
        logger.info("stage %d: %s accuracy %.4f on %d %s", stage, split, accuracy, count, samples)
    return report
