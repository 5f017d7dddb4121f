"""A comparison of recipes in which the scripts are stand-ins that take no time."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import yaml

from benchmarks.recipes import masks
from benchmarks.recipes.engine import fill
from benchmarks.recipes.processes import ChildFailed
from benchmarks.recipes.runs import runs_of
from benchmarks.recipes.workplace import Workplace
from benchmarks.store import Store

DEFINITIONS = {
    "data": {
        "toy": {"title": "toy images", "options": {"dataset": "{data}/toy"}, "evaluate": {"dataset": "{data}/toy"}}
    },
    "pairs": {
        "small": {
            "title": "A small pair",
            "data": "toy",
            "teacher": {"model_type": "small", "epochs": 2, "seed": 0},
            "training": {"num_blocks": 3, "epochs": 1},
        },
        "other": {"title": "Another", "data": "toy", "teacher": {"seed": 1}, "training": {"num_blocks": 2}},
    },
    "recipes": {
        "plain": {"title": "plain", "options": {"weight": 0, "alpha": 0.4}, "orders": "prefix"},
        "paper": {"title": "paper", "options": {"weight": 1}},
        "ours": {"title": "ours", "extends": "paper", "options": {"weight": 2}, "pairs": {"other": {"weight": 3}}},
    },
    "tables": {
        "orders": {
            "title": "Orders",
            "form": "orders",
            "sections": [
                {"title": "Small", "pair": "small", "recipes": ["paper", "ours"], "base": "ours"},
                {"title": "Other", "pair": "other", "recipes": ["ours"], "base": "ours"},
            ],
        },
        "variants": {
            "title": "Variants",
            "form": "variants",
            "times": "variants-speed",
            "sections": [{"title": "Small", "pair": "small", "recipes": ["plain", "paper", "ours"], "base": "plain"}],
        },
        "variants-speed": {
            "title": "Speed of variants",
            "form": "cost",
            "rounds": 1,
            "options": {"max_steps": 3},
            "sections": [{"title": "Small", "pair": "small", "recipes": ["plain", "paper", "ours"], "base": "plain"}],
        },
        "speed": {
            "title": "Speed",
            "form": "cost",
            "rounds": 2,
            "goal": 1.6,
            "options": {"max_steps": 3},
            "sections": [{"title": "Small", "pair": "small", "recipes": ["paper", "ours"], "base": "ours"}],
        },
    },
}


def write_definitions(folder: Path, changes: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for kind, entries in (DEFINITIONS | (changes or {})).items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump({kind: entries}))
    return folder


class Scripts:
    """Stands in for the training scripts and `pwl-hf evaluate`: reads what they are given, writes what they would."""

    def __init__(self, broken: str | None = None) -> None:
        self.commands: list[list[str]] = []
        self.options: list[dict[str, object]] = []
        self.broken = broken
        self._lock = threading.Lock()

    def __call__(self, command, log) -> None:
        with self._lock:
            self.commands.append(list(command))
        words = " ".join(command)
        if self.broken is not None and self.broken in words:
            raise ChildFailed(f"{self.broken} is broken")
        log.write_text("a line\n")
        if "evaluate" in command:
            self._evaluate(command)
        else:
            self._train(Path(command[-1]))

    def _train(self, recipe: Path) -> None:
        options = yaml.safe_load(recipe.read_text())
        with self._lock:
            self.options.append(options)
        folder = Path(options["output_dir"])
        folder.mkdir(parents=True)
        (folder / "options.json").write_text(json.dumps(options))
        figures = {"train_runtime": 10.0, "train_samples_per_second": 100.0 * (1 + options.get("weight", 0))}
        (folder / "train_results.json").write_text(json.dumps(figures))

    def _evaluate(self, command) -> None:
        given = dict(itertools.pairwise(command))
        options = json.loads((Path(command[command.index("evaluate") + 1]) / "options.json").read_text())
        n = options["num_blocks"]
        rows = masks.stages(n)
        if given["--orders"] == "all":
            rows = ["".join(mask) for mask in itertools.product("ST", repeat=n)]
        base = 0.5 + 0.01 * options["weight"] + 0.001 * options["seed"]
        Path(given["--output"]).write_text(evaluation({row: base + 0.1 * row.count("T") / n for row in rows}))


def evaluation(accuracies: dict[str, float]) -> str:
    rows = [{"sources": mask, "accuracy": value} for mask, value in accuracies.items()]
    return json.dumps({"dataset": {"n": 200}, "masks": rows})


def run_all(definitions, table, tmp_path, scripts, *, seeds=(0, 1), jobs=2, **options) -> dict[str, str]:
    workplace = Workplace(tmp_path / "work", tmp_path / "data", scripts)
    runs = runs_of(definitions, definitions.tables[table], seeds)
    return fill(runs, Store(tmp_path / "results.json"), workplace, jobs=jobs, report=lambda _: None, **options)
