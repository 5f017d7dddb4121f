"""Counting right answers along many paths, in as few passes as they need.

A sample has one answer, or of texts whose words have a label each, one for each of these.

Notation: N blocks; M masks; B samples, images of C channels, H x W pixels, say; n answers; K labels.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from pwl_hf.data.names import NO_LABEL
from pwl_hf.evaluation.labels import check_one_label, class_numbers, labels_of
from pwl_hf.evaluation.results import Evaluation
from pwl_hf.evaluation.tally import Tally
from pwl_hf.modeling import PWLPreTrainedModel as Model
from pwl_hf.modeling import Sources
from pwl_hf.opening import WORDS_TASK, open_model

# Masks that share blocks at once: the features of all are in memory. Sorted masks begin alike.
_SHARING = 16


def evaluate_masks(
    model: Model,
    data: Dataset[Any],
    masks: Sequence[str],
    *,
    label_names: Sequence[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Count the right answers of several masks, in one pass over the data.

    Blocks that masks have in common run once. A sample is right if its greatest logit is at its label; one with a
    logit that is no number is wrong. The model's mode, stage and statistics are afterwards what they were.

    Args:
        model: A model with everything in memory, loaded with `keep_all=True` or made of two networks.
        data: Items with the model's inputs, such as `pixel_values` (C, H, W), and `labels`, as `inputs_of` gives them;
            it may have a `collate` that makes a batch of some. Of tokens the labels are (tokens,), -100 where none
            counts.
        masks: The masks, each once.
        label_names: The names of the data's labels, to be brought into the model's order (see `class_numbers`).
        batch_size: How many samples run at once.
        num_workers: Processes that read the data; 0 reads it in this one.
        progress: Show a progress bar.

    Returns:
        The counts of each mask, compared with the student's if that is among the masks.

    Raises:
        ValueError: If the model does not choose one label of several (see `check_one_label`), if a mask is malformed or
            named twice, if the data has no samples, no labels, or labels that cannot be the model's, or if its images
            do not fit the model.
        StageError: If a mask needs what is not in memory.

    Example:

        >>> from pwl_hf.data import DataSource, open_split
        >>> split = open_split(DataSource("digits"), "test")  # doctest: +SKIP
        >>> found = evaluate_masks(model, split.pixels(processor), ["SSSS", "STTS", "TTTT"])  # doctest: +SKIP
        >>> found["STTS"].correct, found["STTS"].over_student  # doctest: +SKIP
        (633, Comparison(reference='SSSS', gained=14, lost=51, total=719))
    """
    reader = _Reader(data, _classes(model, label_names), batch_size, num_workers, progress)
    tally = _tally(model, masks)
    for logits, labels, counts in _logits_by_batch(model, reader, masks):
        tally.add(torch.stack([_answers(logits[mask]) for mask in masks]).cpu(), labels.cpu(), counts)
    return tally.result()


class Answers(NamedTuple):
    """What several masks answer, sample by sample, both (masks, samples), float64, on the CPU.

    Of a text whose words have a label each it is the mean over these words; one without any is left out.

    Args:
        right: 1 where a sample is right, 0 where it is wrong.
        divergence: KL(p || q) in nats, p being the teacher's probabilities and q the mask's.
    """

    right: torch.Tensor
    divergence: torch.Tensor


def answers_of(
    model: Model,
    data: Dataset[Any],
    masks: Sequence[str],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> Answers:
    """What several masks answer, sample by sample, in one pass over the data.

    Args:
        model: As in `evaluate_masks`.
        data: As there, with labels as the model numbers them.
        masks: As there.
        batch_size: As there.
        num_workers: As there.
        progress: As there.

    Raises:
        ValueError: As `evaluate_masks`.
        StageError: If a mask, or the teacher, needs what is not in memory.
    """
    reader = _Reader(data, _classes(model, None), batch_size, num_workers, progress)
    teacher = "T" * model.num_blocks
    empty = torch.empty(len(masks), 0)
    right, divergence = [empty.double()], [empty.double()]
    for logits, labels, counts in _logits_by_batch(model, reader, [*masks, *({teacher} - {*masks})]):
        expected = logits[teacher].double().log_softmax(-1)
        found = torch.stack([logits[mask].double().log_softmax(-1) for mask in masks])
        # Logits that are no numbers are as far from the teacher's as can be.
        apart = (expected.exp() * (expected - found)).sum(-1).nan_to_num(nan=torch.inf)
        divergence.append(_by_sample(apart.cpu(), counts))
        found = torch.stack([_answers(logits[mask]) for mask in masks])
        right.append(_by_sample((found == labels).double().cpu(), counts))
    return Answers(torch.cat(right, 1), torch.cat(divergence, 1))


def _logits_by_batch(
    model: Model, reader: _Reader, masks: Sequence[str]
) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, list[int]]]:
    """The logits (n, K) of each mask, the labels (n,), and how many of these each sample has, batch by batch."""
    found = [Sources.of(mask, model.num_blocks).mask for mask in masks]
    if len(set(found)) != len(found) or not found:
        raise ValueError(f"masks must be at least one, each named once, got {list(masks)}")
    with _evaluating(model), low_precision(model, found):
        for inputs, labels in reader.batches(model):
            logits: dict[str, torch.Tensor] = {}
            waiting = iter(sorted(found))
            while together := list(islice(waiting, _SHARING)):
                paths = model.shared_paths(inputs)
                with _naming(inputs):
                    logits |= {mask: paths(mask).logits[labels >= 0] for mask in together}
            yield logits, labels[labels >= 0], _counts(labels)


def evaluate_stages(
    model: Model | str | os.PathLike[str],
    data: Dataset[Any],
    *,
    label_names: Sequence[str] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Count the right answers of every stage, stepped through as a server would.

    A model that was loaded stage by stage loads and releases its blocks, with one pass over the data a stage, so
    that no more is in memory than is served. With everything in memory, one pass serves all stages. Its mode, stage
    and statistics are afterwards what they were.

    Args:
        model: The model, or the folder or Hub id of one.
        data: As in `evaluate_masks`; it must give the same images in the same order each time.
        label_names: As in `evaluate_masks`.
        batch_size: As in `evaluate_masks`.
        num_workers: As in `evaluate_masks`.
        progress: Show a progress bar for each pass.

    Returns:
        The counts of stages 0 to N, each compared with the student and with the stage before it.

    Raises:
        ValueError: As in `evaluate_masks`; or if the data gives other images the second time.
        StageError: If stages are being streamed, or a block was changed that a change of stage would release.
        RepositoryError: If a file is not what the manifest says.
    """
    opened = model if isinstance(model, Model) else open_model(model)
    if opened.parts.is_whole:
        return evaluate_masks(
            opened,
            data,
            opened.schedule,
            label_names=label_names,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=progress,
        )
    return _step_through(opened, _Reader(data, _classes(opened, label_names), batch_size, num_workers, progress))


def _step_through(model: Model, reader: _Reader) -> Evaluation:
    masks, sources = model.schedule, model.sources
    found, seen = [], torch.empty(0)
    counts: list[int] = []
    with _evaluating(model):
        try:
            for stage, mask in enumerate(masks):
                model.set_stage(stage)
                batches = replace(reader, title=f"stage {stage} {mask}").batches(model)
                rows, labels, counts = _answers_and_labels(model, batches)
                if stage and not torch.equal(labels, seen):
                    raise ValueError(
                        f"the data gave {len(labels)} images at stage {stage} and {len(seen)} before, or the same "
                        "ones in another order: give data that is the same each time"
                    )
                found.append(rows)
                seen = labels
        finally:
            model.set_sources(sources)
    tally = _tally(model, masks)
    tally.add(torch.stack(found), seen, counts)
    return tally.result()


def _answers_and_labels(
    model: Model, batches: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """What the current path answers, and the labels, both (n,), on the CPU; and how many each sample has."""
    found, seen = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    counts: list[int] = []
    for inputs, labels in batches:
        with _naming(inputs):
            logits = model(**inputs, return_dict=True).logits
        found.append(_answers(logits[labels >= 0]).cpu())
        seen.append(labels[labels >= 0].cpu())
        counts += _counts(labels)
    return torch.cat(found), torch.cat(seen), counts


def _tally(model: Model, masks: Sequence[str]) -> Tally:
    return Tally(masks, model.schedule, labels_of(model.config), of_words=model.task == WORDS_TASK)


def _classes(model: Model, label_names: Sequence[str] | None) -> list[int]:
    check_one_label(model.config)
    return class_numbers(label_names, cast(dict[int, str], model.config.id2label))


def _answers(logits: torch.Tensor) -> torch.Tensor:
    """(n,) int64 from logits (n, K): the class of the greatest, -1 for logits that are no numbers."""
    # argmax takes a NaN for the greatest.
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


def _counts(labels: torch.Tensor) -> list[int]:
    """How many labels each sample has, from labels (B,), or of words (B, tokens)."""
    counts: list[int] = (labels >= 0).reshape(len(labels), -1).sum(1).tolist()
    return counts


def _by_sample(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The means over each sample's answers, (M, samples) from (M, n); samples without an answer are left out."""
    return torch.stack([part.mean(1) for part in values.split(list(counts), 1) if part.shape[1]], 1)


@contextmanager
def low_precision(model: Model, masks: Sequence[str]) -> Iterator[None]:
    """Let a model that keeps everything have the teacher in low precision too, if a mask takes blocks of it."""
    before = model.sources
    if model.parts.is_whole and any("Q" in mask for mask in masks):
        model.set_sources("Q" * model.num_blocks)
    try:
        yield
    finally:
        if model.sources != before:
            model.set_sources(before)


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Reader:
    """Data, read as batches that a model takes."""

    data: Dataset[Any]
    classes: Sequence[int]
    batch_size: int
    num_workers: int
    progress: bool
    title: str = "evaluating"

    def batches(self, model: Model) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """Inputs by name, floating ones of the model's dtype, and labels as the model numbers them.

        Labels are (B,), or of words (B, tokens), below 0 where none counts.
        """
        # Without its own generator the loader would draw from the global one, amid training.
        loader: DataLoader[Any] = DataLoader(
            self.data,
            self.batch_size,
            num_workers=self.num_workers,
            generator=torch.Generator(),
            # Of texts, each of its own length.
            collate_fn=getattr(self.data, "collate", None),
        )
        device, dtype, main = model.device, model.dtype, model.main_input_name
        # Items may have more columns: the model is called with those that it takes.
        taken = inspect.signature(type(model).forward).parameters.keys() - {"labels"}
        classes = torch.tensor(self.classes)
        for batch in tqdm(loader, desc=self.title, disable=not self.progress, leave=False):
            if "labels" not in batch:
                raise ValueError("the data has no labels, so nothing can be right: name their column")
            labels = batch["labels"].long()
            if main not in batch:
                raise ValueError(f"the data has no {main!r}, which the model takes: its columns are {', '.join(batch)}")
            inputs = {name: value for name, value in batch.items() if name in taken}
            # Of words, tokens that have none.
            counted = (labels != NO_LABEL) if labels.ndim > 1 else torch.ones_like(labels, dtype=torch.bool)
            if wrong := labels[counted & ((labels < 0) | (labels >= len(classes)))].tolist():
                raise ValueError(f"the data has the label {wrong[0]}, the model's labels are 0 to {len(classes) - 1}")
            yield (
                {n: v.to(device, dtype if v.is_floating_point() else v.dtype) for n, v in inputs.items()},
                torch.where(counted, classes[labels * counted], NO_LABEL).to(device),
            )


@contextmanager
def _naming(inputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Name the shape of images that a model refuses."""
    try:
        yield
    except ValueError as error:
        if "pixel_values" not in inputs:
            raise
        raise ValueError(
            f"images of shape {tuple(inputs['pixel_values'].shape[1:])} do not fit the model ({error}): the image "
            "processor must give the size that it was trained on"
        ) from error
