"""What a run is, and what makes two runs the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.recipes.definitions import Definitions, Options, Table


@dataclass(frozen=True)
class Training:
    """A training of a teacher, of a student, or of a few steps for their speed: what decides its outcome.

    Args:
        name: What it is called in logs and as a folder.
        script: The module that trains: `train_teacher` or `train` of the library, or one by its whole name.
        options: All options given to it, without paths: `{data}` stands for the data's folder, `{weights}` for that of
            published weights, `{teacher}` for that of the teacher's training.
        files: The SHA-256 of the files that it reads.
        teacher: The training of its teacher, if the script needs one.
    """

    name: str
    script: str
    options: Options
    files: dict[str, str]
    teacher: Training | None = None

    @property
    def key(self) -> str:
        """The name and a digest of everything that decides the outcome."""
        return f"{self.name}-{digest(self.identity())}"

    def identity(self) -> dict[str, Any]:
        """What the digest is of."""
        return {
            "script": self.script,
            # The name that finished runs were filed under.
            "options": {"num_stages" if name == "num_blocks" else name: v for name, v in self.options.items()},
            "files": self.files,
            "teacher": self.teacher.identity() if self.teacher else None,
        }


@dataclass(frozen=True)
class Run:
    """A training and the measurement of what it made: one cell of a table, one seed.

    Args:
        pair: The pair's name.
        recipe: The recipe's name.
        seed: The seed.
        training: The training.
        evaluate: Options of `pwl-hf evaluate`.
        data: What is said of the data beside every number.
    """

    pair: str
    recipe: str
    seed: int
    training: Training
    evaluate: Options
    data: str

    @property
    def key(self) -> str:
        """What the store files the result under."""
        return f"{self.training.name}-{digest(self.training.identity() | {'evaluate': self.evaluate})}"


def teacher_of(definitions: Definitions, pair: str) -> Training:
    """The training of a pair's teacher: one for all recipes and seeds, and for all pairs that say the same of it."""
    entry = definitions.pairs[pair]
    if entry.published is not None:
        return Training("published-teacher", entry.published, entry.teacher, entry.weights)
    data = definitions.data[entry.data]
    options = data.options | entry.teacher
    files = data.files | entry.weights
    return Training(f"{options.get('model_type', 'given')}-teacher", "train_teacher", options, files)


def run_of(definitions: Definitions, pair: str, recipe: str, seed: int, extra: Mapping[str, Any] | None = None) -> Run:
    """The run of a recipe on a pair with a seed.

    Args:
        definitions: What is defined.
        pair: The pair's name.
        recipe: The recipe's name.
        seed: The seed.
        extra: Options on top of all others.
    """
    entry = definitions.pairs[pair]
    data = definitions.data[entry.data]
    options = data.options | entry.training | definitions.recipe_options(recipe, pair) | dict(extra or {})
    name = f"{pair}-{recipe}-seed{seed}"
    return Run(
        pair=pair,
        recipe=recipe,
        seed=seed,
        training=Training(name, "train", options | {"seed": seed}, data.files, teacher_of(definitions, pair)),
        evaluate=data.evaluate | entry.evaluate | {"orders": definitions.recipes[recipe].orders},
        data=data.title,
    )


def runs_of(definitions: Definitions, table: Table, seeds: Iterable[int], only: Sequence[str] = ()) -> list[Run]:
    """The runs of a table, each once, the first seed of everything first.

    Args:
        definitions: What is defined.
        table: The table.
        seeds: The seeds.
        only: If given, patterns such as `resnet/ours` or `*/paper*`; the others are left out.
    """
    found: dict[str, Run] = {}
    for seed in seeds:
        for section in table.sections:
            for recipe in section.recipes:
                if chosen(section.pair, recipe, only):
                    run = run_of(definitions, section.pair, recipe, seed)
                    found.setdefault(run.key, run)
    return list(found.values())


def chosen(pair: str, recipe: str, only: Sequence[str]) -> bool:
    """Whether `pair/recipe` is of one of the patterns; without patterns everything is."""
    return not only or any(fnmatch(f"{pair}/{recipe}", pattern) for pattern in only)


def digest(value: Any) -> str:
    """Ten hexadecimal digits of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def filled(value: Any, places: Mapping[str, Path | None]) -> Any:
    """A value with folders for their names, such as `{data}`, in strings at any depth.

    Args:
        value: An option's value, or options.
        places: The folders; None for one that is not there.

    Raises:
        ValueError: If a folder is needed that is not there.
    """
    if isinstance(value, Mapping):
        return {name: filled(inner, places) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, places) for inner in value]
    if not isinstance(value, str):
        return value
    for name, folder in places.items():
        if f"{{{name}}}" in value:
            if folder is None:
                raise ValueError(f"{value!r} needs a folder for {name}: give --{name} DIR")
            value = value.replace(f"{{{name}}}", str(folder))
    return value
