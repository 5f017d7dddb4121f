"""The `rungs` command: accuracy over bytes with rungs of precision and without, of models that were trained."""

from __future__ import annotations

import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.circumstances import circumstances
from benchmarks.store import Store
from pwl_hf.modeling.repository.files import write_text

KIND = "ladders"
# What is compared, and up to how many of the teacher's bytes: all of them reach it by then.
WAYS = {
    "rungs": "PWL with rungs",
    "stages": "PWL without",
    "low": "int8 first, no student, then refine",
    "half": "bf16 first, no student, then the rest",
    "student": "the student for ever",
}
END = 1.15
# Accuracy of each step, from so many of the teacher's bytes on.
Steps = Sequence[tuple[float, float]]


def rungs(
    repo: Annotated[list[Path] | None, typer.Argument(help="Folders of trained models, one a seed.")] = None,
    dataset: Annotated[str, typer.Option(help="What they are measured on: as in `pwl-hf evaluate`.")] = "digits",
    split: Annotated[str, typer.Option(help="Its split.")] = "test",
    store: Annotated[Path, typer.Option(help="The JSON file; the table is written next to it.")] = Path(
        "benchmarks/results/rungs.json"
    ),
    bits: Annotated[int, typer.Option(help="Bits of low precision.")] = 8,
) -> None:
    """Measure trained models with rungs of precision and without, and what one would do with the teacher alone."""
    results = Store(store, kinds=(KIND,))
    for folder in repo or ():
        typer.echo(folder, err=True)
        results.add(KIND, f"{folder.name}, {bits} bits", measured(folder, dataset, split, bits))
    text = render(results.read(KIND), store)
    write_text(store.with_suffix(".md"), text)
    typer.echo(text)


def measured(folder: Path, dataset: str, split: str, bits: int) -> dict[str, Any]:
    """Measure one model.

    Args:
        folder: Its repository, without a tier.
        dataset: What it is measured on.
        split: The split.
        bits: Bits of low precision.

    Returns:
        The entry for the store: the steps of each way, and the accuracy of each mask.
    """
    import torch

    from pwl_hf import PWLForImageClassification
    from pwl_hf.data import DataSource
    from pwl_hf.evaluation import evaluate_repository
    from pwl_hf.modeling.publishing.push import Target
    from pwl_hf.quantising import quantise_repository

    source = DataSource(dataset)
    with tempfile.TemporaryDirectory() as scratch:
        # 1. With rungs, without, and with the teacher's weights rounded to half of their bytes.
        manifest = quantise_repository(str(folder), Path(scratch, "rungs"), bits=bits, target=Target("none")).manifest
        if manifest is None:
            raise RuntimeError("a folder was given a tier, and has no manifest")
        by_rungs, by_stages = (evaluate_repository(place, source, split) for place in (Path(scratch, "rungs"), folder))
        model = PWLForImageClassification.from_pretrained(folder, keep_all=True)
        with torch.no_grad():
            for tensor in model.teacher.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.bfloat16())
        model.save_pretrained(Path(scratch, "half"))
        halved = evaluate_repository(Path(scratch, "half"), source, split).evaluation.accuracies[-1]
    # 2. Steps over the teacher's bytes.
    sizes = {entry.path: entry.bytes for entry in manifest.files}
    whole = sum(size for path, size in sizes.items() if path.startswith("teacher/"))
    low = sum(size for path, size in sizes.items() if path.startswith("quantised/"))
    rest = sum(size for path, size in sizes.items() if path.startswith("refinements/"))
    found = {mask.sources: mask.accuracy for mask in (*by_stages.evaluation.masks, *by_rungs.evaluation.masks)}
    count = manifest.num_blocks
    student, coarse, exact = found["S" * count], found["Q" * count], found["T" * count]
    ways: dict[str, Steps] = {
        "rungs": [
            (size / whole, a) for size, a in zip(by_rungs.total_bytes, by_rungs.evaluation.accuracies, strict=True)
        ],
        "stages": [
            (size / whole, a) for size, a in zip(by_stages.total_bytes, by_stages.evaluation.accuracies, strict=True)
        ],
        "low": [(low / whole, coarse), ((low + rest) / whole, exact)],
        "half": [(0.5, halved), (1.0, exact)],
        "student": [(by_stages.total_bytes[0] / whole, student)],
    }
    return {"ways": ways, "accuracies": found, "images": by_rungs.dataset.n, **circumstances()}


def area(steps: Steps) -> float:
    """The mean accuracy while the teacher's bytes come in, from 0 to `END` of them; 0 before the first step."""
    ends = [*(at for at, _ in steps[1:]), END]
    return sum(value * (end - at) for (at, value), end in zip(steps, ends, strict=True)) / END


def render(entries: Mapping[str, Mapping[str, Any]], store: Path) -> str:
    """The table of stored results, a row a pair."""
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for name, entry in entries.items():
        pairs.setdefault(re.sub(r"-seed\d+", "", name), []).append(entry)
    lines = [
        "# Rungs of precision on trained models",
        "",
        f"Made by `python -m benchmarks rungs REPO... --dataset DATA --store {store}`.",
        "",
        f"The mean accuracy while the teacher's bytes come in, from 0 to {END} of them, in percent; mean ± standard "
        "deviation over seeds. Before its first step a way has none.",
        "",
        f"| models | seeds | {' | '.join(WAYS.values())} |",
        f"|---|---|{'---|' * len(WAYS)}",
    ]
    for pair, found in sorted(pairs.items()):
        cells = [_spread([area(entry["ways"][way]) for entry in found]) for way in WAYS]
        lines.append(f"| {pair} | {len(found)} | {' | '.join(cells)} |")
    lines += ["", "## Every rung", "", "Bytes so far in parts of the teacher's, and accuracy in percent.", ""]
    for pair, found in sorted(pairs.items()):
        masks = list(found[0]["accuracies"])
        rungs_of = found[0]["ways"]["rungs"]
        ladder = [mask for mask in masks if mask in _ladder(len(masks[0]))]
        lines += [f"### {pair}", "", "| mask | bytes | accuracy |", "|---|---|---|"]
        at = dict(zip(sorted(ladder, key=_rank), (step[0] for step in rungs_of), strict=False))
        for mask in sorted(ladder, key=_rank):
            lines.append(f"| `{mask}` | {at[mask]:.3f} | {_spread([entry['accuracies'][mask] for entry in found])} |")
        lines.append("")
    return "\n".join(lines)


def _ladder(num_blocks: int) -> set[str]:
    from pwl_hf.modeling.schedule import Schedule

    return {mask.mask for mask in Schedule.prefixes(num_blocks).ladder()}


def _rank(mask: str) -> tuple[int, int]:
    return mask.count("T"), mask.count("Q")


def _spread(values: Sequence[float]) -> str:
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"
