"""Model cards of runs, for publishing beside the results: the card and the manifest, no weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from benchmarks.recipes.runs import Run
from benchmarks.recipes.store import Entry
from benchmarks.recipes.workplace import Workplace
from pwl_hf.model_card import CARD_FILE
from pwl_hf.modeling.manifest import MANIFEST_FILE


def publish_card(
    run: Run, entry: Entry, titles: Mapping[str, str], command: str, workplace: Workplace, folder: Path
) -> Path:
    """Copy a run's card and manifest to a folder, with what made the model above the generated part.

    Args:
        run: The run.
        entry: Its entry in the store.
        titles: What `pair` and `recipe` are called.
        command: What trains it.
        workplace: Where it was trained.
        folder: The folder of all cards; the card goes to `<name of the run>/README.md` in it.

    Returns:
        The card.

    Raises:
        ValueError: If the card there was not made by the library.
        FileNotFoundError: If the model is not in the workplace any more.
    """
    model = workplace.model_folder(run.training)
    if model is None:
        raise FileNotFoundError(f"{run.key} is not in the work folder: give the one it was trained in")
    target = folder / run.training.name
    target.mkdir(parents=True, exist_ok=True)
    text = (model / CARD_FILE).read_text(encoding="utf-8")
    card = target / CARD_FILE
    card.write_text(_introduced(text, _introduction(run, entry, titles, command)), encoding="utf-8")
    shutil.copyfile(model / MANIFEST_FILE, target / MANIFEST_FILE)
    return card


def _introduction(run: Run, entry: Entry, titles: Mapping[str, str], command: str) -> str:
    accuracies = entry["accuracy"]
    n = len(next(iter(accuracies)))
    if len(accuracies) == 2**n:
        lowest = min(accuracies, key=accuracies.__getitem__)
        measured = f"and the lowest of all {2**n} masks, `{lowest}`, {100 * accuracies[lowest]:.1f} %"
    else:
        measured = "and it was trained alone: of the stages, only the first and the last are of use"
    return f"""# {run.pair}: {titles["recipe"]}, seed {run.seed}

{titles["pair"]}.

Trained on {entry["data"]}. On {entry["test_images"]:,} of its test images the student has
{100 * accuracies["S" * n]:.1f} %, {measured}. `pwl_index.json` beside this card is the raw result of the stages.

Made by `{command}`: the teacher, and then this model with these options of `training/train.py`:

```yaml
{yaml.safe_dump(entry["options"], sort_keys=False).strip()}
```
"""


def _introduced(card: str, introduction: str) -> str:
    """A card with another text between its metadata and its generated part."""
    head, separator, generated = card.partition("<!-- pwl-hf: generated")
    if not separator:
        raise ValueError("the card has no generated part")
    metadata = head[: head.index("---", 3) + 3] if head.startswith("---") else ""
    return f"{metadata}\n\n{introduction}\n{separator}{generated}"
