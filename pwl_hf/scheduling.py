"""Choosing the order of a repository's stages by measurement: what `pwl-hf schedule` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pwl_hf.evaluation.area import area_over_bytes
from pwl_hf.evaluation.intervals import Interval, of_mean
from pwl_hf.evaluation.repositories import open_to_measure
from pwl_hf.evaluation.running import Answers, answers_of
from pwl_hf.evaluation.search import SEARCHES, Search, StageBytes, best_schedule, search_for
from pwl_hf.modeling.publishing.model_card import CARD_FILE, stage_rows, write_card
from pwl_hf.modeling.publishing.push import push_schedule
from pwl_hf.modeling.publishing.saving import write_schedule
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.opening import WORDS_TASK, samples_of

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from pwl_hf.data import DataSource
    from pwl_hf.modeling.publishing.push import Target
    from pwl_hf.modeling.repository.manifest import Manifest

# Two to judge by have a spread.
_FEWEST = 4


@dataclass(frozen=True)
class Judged:
    """A schedule, as it was judged.

    Args:
        masks: The mask of each stage.
        accuracies: The accuracy of each stage.
        total_bytes: The bytes of all files that are loaded at each stage.
    """

    masks: tuple[str, ...]
    accuracies: tuple[float, ...]
    total_bytes: tuple[int, ...]

    @property
    def area(self) -> float:
        """The area under accuracy over bytes (see `area_over_bytes`)."""
        return area_over_bytes(self.accuracies, self.total_bytes)


@dataclass(frozen=True)
class ScheduleReport:
    """What was found, and what became of it.

    Args:
        search: How it was searched for: `"all"` or `"swaps"`.
        num_masks: How many masks were measured.
        num_chosen_by: How many samples it was chosen by.
        num_judged_by: How many others both schedules were judged by.
        present: The schedule that there was, on the samples to judge by.
        best: The one that was found, on the same samples; the same where none is better.
        gain: The 95 % interval of how much greater its area is, for paired samples.
        without_statistics: Its mixed masks that have no BatchNorm statistics of their own, in a repository that has
            such statistics: they are measured, and served, with the networks' own.
        unmeasured: Its masks that the manifest has no metric of, if it has some of other stages.
        had_graphs: Whether the repository has graphs, which another order makes useless.
        written: Whether it was written.
        samples: What was measured on: `"images"`, `"texts"`, `"words"` or `"sounds"`.
        commit: The commit, of a repository of the Hub.
    """

    search: Search
    num_masks: int
    num_chosen_by: int
    num_judged_by: int
    present: Judged
    best: Judged
    gain: Interval
    without_statistics: tuple[str, ...]
    unmeasured: tuple[str, ...]
    had_graphs: bool
    written: bool = False
    samples: str = "images"
    commit: CommitInfo | None = None

    @property
    def is_better(self) -> bool:
        """Whether the schedule that was found has a greater area, beyond the interval."""
        return self.gain.low > 0


def schedule_repository(
    repo: str,
    source: DataSource,
    split: str,
    *,
    target: Target,
    search: Search | None = None,
    dry_run: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    subfolder: str = "",
    progress: bool = False,
) -> ScheduleReport:
    """Find the order of blocks with the greatest area under accuracy over bytes, and write it if it is better.

    Every other sample chooses: the schedule of the least area under the mean divergence from the teacher's answers,
    KL(teacher || mask), over the bytes. The other samples judge, by their labels: it is written if its area under
    accuracy is greater there, beyond the 95 % interval. Weights stay as they are: masks are measured with the
    converters and statistics that the repository holds. With rungs of precision the order is that of the teacher's own
    blocks, and the rungs of that order (`Schedule.ladder`) are what is judged and written.

    The divergence, by which KLPatch (arXiv 2607.08170) scores blocks, takes far fewer samples than the count of right
    answers (docs/scheduling.md has figures).

    Args:
        repo: A folder or a Hub id, which gets the schedule in one commit.
        source: Where the samples lie; they should be neither those that the student was trained on nor those that its
            accuracy is to be told of.
        split: The split.
        target: Branch, token and commit texts of a repository of the Hub.
        search: `"all"` or `"swaps"` (see `best_schedule`); by the number of blocks by default.
        dry_run: Write nothing.
        batch_size: How many samples run at once.
        num_workers: Processes that read images and sounds which do not fit into memory.
        device: Where it runs; on the first GPU if there is one, by default.
        subfolder: Where in the repository the model lies.
        progress: Show progress bars.

    Raises:
        ValueError: For another search, a model of one block, fewer than four samples, or as `evaluate_repository`.
        InputError: For a device that is not there.
        DataError: If the data cannot be read.
        RepositoryError: If the repository is malformed, or has nothing that makes inputs of its samples.
        SaveError: If the folder cannot be written to, or got other weights meanwhile.
        PublishError: If the network or the Hub fails in every try.

    Example:

        >>> from pwl_hf.data import DataSource
        >>> report = schedule_repository(
        ...     "digits-pwl", DataSource("digits"), "test", target=Target("digits-pwl"), dry_run=True
        ... )  # doctest: +SKIP
        >>> report.best.masks  # doctest: +SKIP
        ['SSSS', 'TSSS', 'TTSS', 'TTTS', 'TTTT']
    """
    if search is not None and search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    # 1. Everything in memory.
    opened, manifest, model, samples = open_to_measure(
        repo,
        source,
        split,
        keep_all=True,
        keep_images=True,
        device=device,
        revision=target.revision,
        subfolder=subfolder,
        token=target.token,
    )
    if manifest.num_blocks == 1:
        raise ValueError(f"{opened} has one block, which comes in one order")
    search = search or search_for(manifest.num_blocks)
    # 2. The choice, by every other image.
    answers: dict[str, Answers] = {}

    def measure(masks: Sequence[str]) -> Mapping[str, float]:
        found = answers_of(model, samples, masks, batch_size=batch_size, num_workers=num_workers, progress=progress)
        if (count := found.right.shape[1]) < _FEWEST:
            raise ValueError(f"a choice takes samples to choose by and others to judge by, got {count} in all")
        answers.update({mask: Answers(*rows) for mask, *rows in zip(masks, *found, strict=True)})
        return {mask: answers[mask].divergence[::2].mean().item() for mask in masks}

    stage_bytes = StageBytes(manifest)
    present = manifest.schedule
    order = Schedule.of(best_schedule(measure, stage_bytes, present.without_tier(), search))
    chosen = order.ladder() if present.has_tier else order
    if order == present.without_tier():
        chosen = present
    if missing := sorted({mask.mask for mask in (*present, *chosen)} - answers.keys()):
        measure(missing)
    # 3. The judgement, by the others.
    right = {mask: rows.right[1::2] for mask, rows in answers.items()}
    before, best = (_judged(manifest, schedule, right) for schedule in (present, chosen))
    gains = _areas(best, right) - _areas(before, right)
    report = ScheduleReport(
        search=search,
        num_masks=len(answers),
        num_chosen_by=len(next(iter(answers.values())).right) - len(gains),
        num_judged_by=len(gains),
        present=before,
        best=best,
        gain=of_mean(gains.tolist()),
        without_statistics=_without_statistics(manifest, order),
        unmeasured=_unmeasured(manifest, chosen),
        had_graphs=bool(manifest.attachments),
        samples="texts" if model.task == WORDS_TASK else samples_of(model.task),
    )
    if dry_run or not report.is_better:
        return report
    target = replace(target, repo_id=opened.name)
    return replace(report, written=True, commit=_write(opened, manifest, chosen, target))


def _write(opened: Repository, manifest: Manifest, schedule: Schedule, target: Target) -> CommitInfo | None:
    if opened.commit is not None:
        return push_schedule(opened, schedule, target)
    folder = Path(opened.name, opened.subfolder)
    write_schedule(folder, schedule, manifest)
    if (folder / CARD_FILE).exists():
        write_card(folder, token=target.token)
    return None


def _judged(manifest: Manifest, schedule: Schedule, right: Mapping[str, torch.Tensor]) -> Judged:
    masks = tuple(mask.mask for mask in schedule)
    sizes = (row["total_bytes"] for row in stage_rows(manifest.with_schedule(schedule)))
    return Judged(masks, tuple(right[mask].mean().item() for mask in masks), tuple(sizes))


def _areas(found: Judged, right: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The area of a schedule on each sample alone, (samples,): the part of the bytes at which it is right."""
    steps = zip(found.masks, pairwise(found.total_bytes), strict=False)
    return (
        torch.stack([right[mask] * (after - before) for mask, (before, after) in steps]).sum(0) / found.total_bytes[-1]
    )


def _without_statistics(manifest: Manifest, schedule: Schedule) -> tuple[str, ...]:
    known = set(manifest.masks)
    return tuple(mask.mask for mask in schedule if known and mask.is_mixed and mask not in known)


def _unmeasured(manifest: Manifest, schedule: Schedule) -> tuple[str, ...]:
    known = {stage.sources for stage in manifest.stages if stage.metrics}
    return tuple(mask.mask for mask in schedule if known and mask.mask not in known)
