"""What the scripts leave behind, read: the figures of a training and of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class OutputError(RuntimeError):
    """A script that succeeded and left no result, or one that cannot be read."""


def read_training(model: Path) -> dict[str, float]:
    """The figures of a training, from the results that the Trainer writes beside the model.

    Args:
        model: The output folder.

    Returns:
        `seconds` of the training loop and `images_per_second` in it.

    Raises:
        OutputError: If they are not there.
    """
    content = _read(model / "train_results.json")
    try:
        return {
            "seconds": float(content["train_runtime"]),
            "images_per_second": float(content["train_samples_per_second"]),
        }
    except (KeyError, TypeError) as error:
        raise OutputError(f"{model / 'train_results.json'} has no {error}") from error


def read_evaluation(path: Path) -> tuple[dict[str, float], int]:
    """The accuracy of each mask and the number of images, from the JSON of `pwl-hf evaluate`.

    Raises:
        OutputError: If they are not there.
    """
    content = _read(path)
    try:
        return {row["sources"]: float(row["accuracy"]) for row in content["masks"]}, int(content["dataset"]["n"])
    except (KeyError, TypeError) as error:
        raise OutputError(f"{path} has no {error}") from error


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"no result in {path}: {error}") from error
