"""Model cards of runs, for publishing beside the results: the card and the manifest, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks.recipes import masks
from benchmarks.recipes.runs import Run
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Entry
from pwl_hf.modeling.publishing.model_card import CARD_FILE, render_card
from pwl_hf.modeling.repository.layout import MANIFEST_FILE
from pwl_hf.modeling.repository.manifest import Manifest, Metric


def publish_card(
    run: Run, entry: Entry, titles: Mapping[str, str], command: str, workplace: Workplace, folder: Path
) -> Path:
    """Write a run's card and manifest to a folder, with what made the model above the generated part.

    Args:
        run: The run.
        entry: Its entry in the store.
        titles: What `pair`, `recipe` and the data's `samples` are called.
        command: What trains it.
        workplace: Where it was trained.
        folder: The folder of all cards; the card goes to `<name of the run>/README.md` in it.

    Returns:
        The card.

    Raises:
        FileNotFoundError: If the model is not in the workplace any more.
    """
    model = workplace.model_folder(run.training)
    if model is None:
        raise FileNotFoundError(f"{run.key} is not in the work folder: give the one it was trained in")
    manifest = Manifest.from_json((model / MANIFEST_FILE).read_text(encoding="utf-8"))
    # The store's figures: of as many images as the tables' own, and of data by a name that says something elsewhere.
    split = entry["evaluate_options"].get("split", "test")
    metrics = {
        stage: (Metric("accuracy", entry["accuracy"][mask], entry["data"], split, entry["test_images"]),)
        for stage, mask in enumerate(masks.stages(manifest.num_stages))
    }
    manifest = manifest.with_metrics(metrics)
    target = folder / run.training.name
    target.mkdir(parents=True, exist_ok=True)
    (target / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    texts = {path.name: path.read_bytes() for path in model.glob("*.json")}
    introduction = _introduction(run, entry, titles, command)
    card = target / CARD_FILE
    card.write_text(render_card(manifest, texts, repo_id=run.training.name, existing=introduction), encoding="utf-8")
    return card


def _introduction(run: Run, entry: Entry, titles: Mapping[str, str], command: str) -> str:
    accuracies = entry["accuracy"]
    n = len(next(iter(accuracies)))
    if len(accuracies) == 2**n:
        lowest = min(accuracies, key=accuracies.__getitem__)
        measured = f"and the lowest of all {2**n} masks, `{lowest}`, {100 * accuracies[lowest]:.1f} %"
    else:
        measured = "and it was trained alone: of the stages, only the first and the last are of use"
    # With metadata, for a card without any is warned of.
    return f"""---
library_name: pwl-hf
---

# {run.pair}: {titles["recipe"]}, seed {run.seed}

{titles["pair"]}.

Trained on {entry["data"]}. On {entry["test_images"]:,} of its test {titles["samples"]} the student has
{100 * accuracies["S" * n]:.1f} %, {measured}. `pwl_index.json` beside this card is the raw result of the stages.

Made by `{command}`: the teacher, and then this model with these options of `training/train.py`:

```yaml
{yaml.safe_dump(entry["options"], sort_keys=False).strip()}
```
"""
