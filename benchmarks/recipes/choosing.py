"""How many images a choice of schedule takes: by the divergence from the teacher, and by right answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from benchmarks.recipes.schedules import area_of, row
from pwl_hf.data import DataSource
from pwl_hf.evaluation.repositories import open_to_measure
from pwl_hf.evaluation.running import Answers, answers_of
from pwl_hf.evaluation.search import StageBytes, all_masks, shortest

COUNTS = (100, 250, 500, 1000, 2000)
_DRAWS = 20
_SEED = 0

_HEAD = ("images", "by the divergence", "at the worst", "by right answers", "at the worst")


class Model(NamedTuple):
    """What all masks of a model answer.

    Args:
        answers: By mask, (images,) each.
        stage_bytes: The bytes of its files.
        num_blocks: N.
    """

    answers: Mapping[str, Answers]
    stage_bytes: StageBytes
    num_blocks: int


def read_model(folder: Path, data: Path, max_samples: int) -> Model:
    """Run all masks of a saved model over images of the test split.

    Args:
        folder: The model's.
        data: The images'.
        max_samples: How many.
    """
    source = DataSource(str(data), max_samples=max_samples)
    opened = open_to_measure(str(folder), source, "test", keep_all=True, keep_images=False)
    masks = all_masks(opened.manifest.num_blocks)
    found = answers_of(opened.model, opened.images, masks, batch_size=256)
    answers = {mask: Answers(*rows) for mask, *rows in zip(masks, *found, strict=True)}
    return Model(answers, StageBytes(opened.manifest), opened.manifest.num_blocks)


def render_choices(models: Sequence[Model], title: str, counts: Sequence[int] = COUNTS) -> str:
    """A row for each number of images: what the chosen order's area lacks of the best, in points.

    One half of the images chooses, in draws of so many of them; the other half says how good each order is.

    Args:
        models: The models.
        title: The heading and what is said beneath it.
        counts: The numbers of images.
    """
    draw = torch.Generator().manual_seed(_SEED)
    lines = [title, "", row(_HEAD), "|" + "---|" * len(_HEAD)]
    for count in counts:
        lost: dict[str, list[float]] = {"divergence": [], "right": []}
        for model in models:
            half = len(next(iter(model.answers.values())).right) // 2
            if count > half:
                continue
            for _ in range(_DRAWS if count < half else 1):
                chosen_by = 2 * torch.randperm(half, generator=draw)[:count]
                lost["divergence"].append(_lost(model, lambda a, rows=chosen_by: a.divergence[rows]))
                lost["right"].append(_lost(model, lambda a, rows=chosen_by: (~a.right[rows]).double()))
        if lost["right"]:
            cells = [f"{100 * value:.2f}" for found in lost.values() for value in (fmean(found), max(found))]
            lines.append(row([f"{count:,}", *cells]))
    return "\n".join(lines) + "\n"


def _lost(model: Model, losses_of: Callable[[Answers], torch.Tensor]) -> float:
    """How far below the best order's area, on the other half of the images, that of an order by some losses is."""
    accuracies = {mask: found.right[1::2].double().mean().item() for mask, found in model.answers.items()}
    losses = {mask: losses_of(found).mean().item() for mask, found in model.answers.items()}
    errors = {mask: 1 - accuracy for mask, accuracy in accuracies.items()}
    areas = [
        area_of(shortest(by, model.stage_bytes, model.num_blocks), accuracies, model.stage_bytes)
        for by in (errors, losses)
    ]
    return areas[0] - areas[1]
