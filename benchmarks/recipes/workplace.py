"""A folder in which teachers and runs are trained and measured, each once, by child processes.

`teachers/<key>/` and `runs/<key>/` hold the options as `recipe.yaml`, the scripts' output as `log.txt`, the model in a
folder of its own, figures as `done.json` once it is trained, and of runs `evaluation.json`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from filelock import FileLock

from benchmarks.circumstances import circumstances
from benchmarks.recipes.definitions import Options
from benchmarks.recipes.outputs import read_evaluation, read_training
from benchmarks.recipes.processes import Execute
from benchmarks.recipes.runs import Run, Training, filled
from benchmarks.store import Entry
from pwl_hf.modeling.repository.files import write_text


class Workplace:
    """Trains and measures in a folder; what is finished there is not done again.

    Args:
        folder: The folder.
        data: The folder of the data's files, for `{data}` in options.
        execute: Runs a command.
        weights: The folder of published weights, for `{weights}` in options.
    """

    def __init__(self, folder: Path, data: Path | None, execute: Execute, weights: Path | None = None) -> None:
        self._folder = folder.resolve()
        given = {"data": data, "weights": weights}
        self._places = {name: place.resolve() if place is not None else None for name, place in given.items()}
        self._execute = execute

    def train(self, training: Training, *, again: bool = False) -> Path:
        """Train, unless that has been finished here, and return the model's folder.

        Args:
            training: What to train; its teacher is trained before.
            again: Train even if that has been finished; the teacher is not trained again.

        Raises:
            ChildFailed: If the script does not succeed.
            OutputError: If it wrote no figures of the training.
        """
        place = self._place(training)
        model = place / training.name
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            if (place / "done.json").is_file() and not again:
                return model
            (place / "done.json").unlink(missing_ok=True)
            shutil.rmtree(model, ignore_errors=True)
            places = dict(self._places)
            given: Options = {"output_dir": str(model)}
            if training.teacher is not None:
                given["teacher"] = str(self.train(training.teacher))
                places["teacher"] = self._place(training.teacher)
            options = filled(training.options, places) | given
            recipe = place / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
            script = training.script if "." in training.script else f"pwl_hf.training.{training.script}"
            command = [sys.executable, "-m", script, str(recipe)]
            self._execute(command, place / "log.txt")
            result = read_training(model) | {"command": self._shown(command)}
            write_text(place / "done.json", json.dumps(result, indent=1) + "\n")
        return model

    def trained(self, training: Training) -> Entry:
        """What is known of a finished training: `seconds`, `images_per_second`, `command`."""
        found: Entry = json.loads((self._place(training) / "done.json").read_text(encoding="utf-8"))
        return found

    def model_folder(self, training: Training) -> Path | None:
        """The folder of a finished training's model; None if there is none here."""
        place = self._place(training)
        return place / training.name if (place / "done.json").is_file() else None

    def measure(self, run: Run) -> Entry:
        """Train and evaluate a run.

        Returns:
            The entry for the store.

        Raises:
            ChildFailed: If a process does not succeed.
            OutputError: If one leaves no result.
        """
        model = self.train(run.training)
        place = self._place(run.training)
        output = place / "evaluation.json"
        options = filled(run.evaluate, self._places) | {"output": str(output), "quiet": True}
        own = flags({"family_module": run.training.options.get("family_module")})
        command = [sys.executable, "-m", "pwl_hf.cli", *own, "evaluate", str(model), *flags(options)]
        with FileLock(place / ".lock"):
            output.unlink(missing_ok=True)
            self._execute(command, place / "log.txt")
            accuracy, images = read_evaluation(output)
        done = self.trained(run.training)
        commands = {"train": done["command"], "evaluate": self._shown(command)}
        if run.training.teacher is not None:
            commands = {"teacher": self.trained(run.training.teacher)["command"]} | commands
        return {
            "pair": run.pair,
            "recipe": run.recipe,
            "seed": run.seed,
            "data": run.data,
            "test_images": images,
            "accuracy": accuracy,
            "seconds": done["seconds"],
            "images_per_second": done["images_per_second"],
            "options": run.training.options,
            "teacher_options": run.training.teacher.options if run.training.teacher else None,
            "evaluate_options": run.evaluate,
            "files": run.training.files,
            "commands": commands,
            **circumstances(),
        }

    def _place(self, training: Training) -> Path:
        return self._folder / ("runs" if training.teacher is not None else "teachers") / training.key

    def _shown(self, command: Sequence[str]) -> str:
        """A command as it can be published: the folders by what they are."""
        text = shlex.join(["python", *command[1:]]).replace(str(self._folder), "WORK")
        for name, place in self._places.items():
            text = text.replace(str(place), name.upper()) if place is not None else text
        return text


def flags(options: Options) -> list[str]:
    """Options as arguments of a typer command: `{"max_samples": 5}` is `--max-samples 5`, true is the flag alone."""
    found: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            found.append(flag)
        elif isinstance(value, list):
            found += [part for item in value for part in (flag, str(item))]
        elif value is not None and value is not False:
            found += [flag, str(value)]
    return found
