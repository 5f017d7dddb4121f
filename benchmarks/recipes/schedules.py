"""In which order blocks should come, found in stored accuracies of all masks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from transformers import AutoConfig

from benchmarks.recipes.definitions import Definitions, Pair, Section
from benchmarks.recipes.estimates import MISSING, Accuracies, Estimate
from benchmarks.recipes.results import Results
from pwl_hf import PWLConfig, PWLForImageClassification
from pwl_hf.evaluation import area_over_bytes, masks_of
from pwl_hf.evaluation.search import StageBytes, best_schedule, raised
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.schedule import Schedule
from pwl_hf.training.networks.building import derived_config

Sizes = Callable[[Definitions, Pair], StageBytes]

_HEAD = (
    "recipe",
    "area, first to last",
    "last to first",
    "order, chosen by all seeds",
    "its stages, against first to last",
    "gain, chosen by the other seeds",
    "by swaps",
    "block by block",
)


def sizes_of(definitions: Definitions, pair: Pair) -> StageBytes:
    """The bytes of a pair's files, without statistics of masks, which are few: those of networks of its configs."""
    labels = {"num_labels": definitions.data[pair.data].num_labels}
    base = derived_config(AutoConfig.for_model(pair.teacher["model_type"], **labels), pair.teacher["config_overrides"])
    student = derived_config(base, pair.training["student_config_overrides"])
    model = PWLForImageClassification(
        PWLConfig(teacher_config=base, student_config=student, num_blocks=pair.num_blocks)
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return StageBytes(Repository.open(folder).manifest())


def schedules_section(definitions: Definitions, section: Section, results: Results, sizes: Sizes = sizes_of) -> str:
    """A row for each recipe: areas of the usual order and of the best, and what shorter searches lose of it.

    A gain is judged on a seed that had no part in the choice. Areas and gains are in percent.
    """
    stage_bytes = sizes(definitions, definitions.pairs[section.pair])
    lines = [row(_HEAD), "|" + "---|" * len(_HEAD)]
    for recipe in section.recipes:
        title = definitions.recipes[recipe].title
        found = {s: a for s, a in results.accuracies(recipe).items() if len(a) == 2**results.num_blocks}
        cells = _cells(found, stage_bytes, results.num_blocks) if found else [MISSING] * (len(_HEAD) - 1)
        lines.append(row([title, *cells]))
    return "\n".join(lines)


def _cells(runs: Accuracies, stage_bytes: StageBytes, num_blocks: int) -> list[str]:
    usual, reverse = masks_of("prefix", num_blocks), masks_of("suffix", num_blocks)
    chosen = _best(list(runs.values()), stage_bytes, num_blocks)
    gains, lost_by_swaps, lost_by_blocks = [], [], []
    for seed, own in runs.items():
        others = [found for other, found in runs.items() if other != seed]
        if others:
            by_others = _best(others, stage_bytes, num_blocks)
            gains.append(area_of(by_others, own, stage_bytes) - area_of(usual, own, stage_bytes))
        best = area_of(_best([own], stage_bytes, num_blocks), own, stage_bytes)
        by_swaps = _best([own], stage_bytes, num_blocks, search="swaps")
        lost_by_swaps.append(area_of(by_swaps, own, stage_bytes) - best)
        lost_by_blocks.append(area_of(_block_by_block(own, num_blocks), own, stage_bytes) - best)
    areas = [Estimate.of([area_of(masks, own, stage_bytes) for own in runs.values()]) for masks in (usual, reverse)]
    same = chosen == usual
    return [
        *(MISSING if area is None else area.percent(of=area.count) for area in areas),
        "first to last" if same else " ".join(str(_turned(*step)) for step in pairwise(chosen)),
        "" if same else f"{_stages(chosen, runs)}, against {_stages(usual, runs)}",
        _points(gains) if gains else MISSING,
        f"{100 * min(lost_by_swaps):+.2f}",
        f"{100 * min(lost_by_blocks):+.2f}",
    ]


def _best(
    runs: Sequence[Mapping[str, float]], stage_bytes: StageBytes, num_blocks: int, search: str = "all"
) -> list[str]:
    """The order of the least error over bytes, by the mean of some runs."""
    errors = {mask: 1 - fmean(run[mask] for run in runs) for mask in runs[0]}
    usual = Schedule.prefixes(num_blocks)
    return best_schedule(
        lambda masks: {mask: errors[mask] for mask in masks},
        stage_bytes,
        usual,
        search,  # type: ignore[arg-type]
    )


def _block_by_block(accuracies: Mapping[str, float], num_blocks: int) -> list[str]:
    """The order of one who always takes the block with which the model is right most often next."""
    path = ["S" * num_blocks]
    while "S" in path[-1]:
        path.append(max(raised(path[-1]), key=accuracies.__getitem__))
    return path


def area_of(masks: Sequence[str], accuracies: Mapping[str, float], stage_bytes: StageBytes) -> float:
    """The area under accuracy over bytes of a schedule."""
    return area_over_bytes([accuracies[mask] for mask in masks], stage_bytes.totals(masks))


def _turned(before: str, after: str) -> int:
    """The number of the block, from 1, that is another."""
    return next(block for block, letters in enumerate(zip(before, after, strict=True), 1) if len(set(letters)) == 2)


def _stages(masks: Sequence[str], runs: Accuracies) -> str:
    return " / ".join(f"{100 * fmean(own[mask] for own in runs.values()):.1f}" for mask in masks)


def _points(gains: Sequence[float]) -> str:
    return " / ".join(f"{100 * gain:+.2f}" for gain in gains)


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
