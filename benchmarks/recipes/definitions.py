"""What is compared: data, pairs of networks, recipes and tables, read from YAML and checked before anything runs.

Options are those of `training/train_teacher.py`, `training/train.py` and `pwl-hf evaluate`, by their names; this
package knows no list of them. Where a value says `{data}` or `{weights}`, the folder given with `--data` or
`--weights` is put in; where it says `{teacher}`, a folder that all runs with the same teacher share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

Options = dict[str, Any]
Kind = TypeVar("Kind")

FOLDER = Path(__file__).parent / "definitions"
FORMS = ("orders", "variants", "cost", "schedules")
ORDERS = ("all", "prefix")


@dataclass(frozen=True)
class Data:
    """Images that pairs are trained and measured on.

    Args:
        title: What is said beside every number.
        files: The SHA-256 of each file below the folder given with `--data`.
        options: Options of both training scripts.
        evaluate: Options of `pwl-hf evaluate`.
        num_labels: The number of labels, for the sizes of networks.
    """

    title: str
    files: dict[str, str] = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    evaluate: Options = field(default_factory=dict)
    num_labels: int = 10


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, and how both are trained whatever the recipe.

    Args:
        title: Networks and sizes, in words.
        data: The name of the data.
        teacher: Options of `training/train_teacher.py`: network, images, epochs, optimizer. The seed is among them. Or
            those of `published`.
        training: Options of `training/train.py` that all recipes share: the student, images, epochs, optimizer.
        evaluate: Options of `pwl-hf evaluate`.
        samples: What is classified, in words.
        published: The module that makes the teacher of published weights, in place of a training.
        weights: The SHA-256 of each file of these below the folder given with `--weights`.
    """

    title: str
    data: str
    teacher: Options
    training: Options
    evaluate: Options = field(default_factory=dict)
    samples: str = "images"
    published: str | None = None
    weights: dict[str, str] = field(default_factory=dict)

    @property
    def num_blocks(self) -> int:
        """The number of blocks N."""
        return int(self.training["num_blocks"])

    @property
    def schedule(self) -> str:
        """How long teacher and students are trained, in words."""
        teacher = "published" if self.published else f"trained on {_schedule(self.teacher, self.samples)}"
        return f"the teacher {teacher}, all else trained on {_schedule(self.training, self.samples)}"


@dataclass(frozen=True)
class Recipe:
    """Options of `training/train.py` that make the difference.

    Args:
        title: What it is, in words.
        extends: The name of another recipe; its options hold where this one gives none.
        options: The options.
        pairs: Options for single pairs, by the pair's name; they win.
        orders: `all` measures all 2^N masks; `prefix` is for runs of the student alone, and only the student
            is shown.
    """

    title: str
    extends: str | None = None
    options: Options = field(default_factory=dict)
    pairs: dict[str, Options] = field(default_factory=dict)
    orders: str = "all"


@dataclass(frozen=True)
class Section:
    """One pair and the recipes that stand side by side on it.

    Args:
        title: Its heading.
        pair: The pair's name.
        recipes: The recipes' names, in the order of columns or rows.
        base: The recipe that the others are held against; the goals are its own.
    """

    title: str
    pair: str
    recipes: list[str]
    base: str


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Args:
        title: Its heading.
        form: `orders` (a row a mask), `variants` (a row a recipe), `schedules` (a row a recipe: the best order of its
            blocks) or `cost` (images/s in rounds).
        sections: Its parts, a pair each.
        about: What a reader must know, in Markdown.
        times: For `variants`: the `cost` table of the same sections and recipes, whose rounds tell the time.
        rounds: For `cost`: how often the recipes take turns.
        goal: For `cost`: how many times as fast as the first recipe the base should be.
        options: For `cost`: options of `training/train.py` on top, such as the number of steps.
    """

    title: str
    form: str
    sections: list[Section]
    about: str = ""
    times: str = ""
    rounds: int = 5
    goal: float | None = None
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Definitions:
    """Everything by name, checked: all names are known, and no recipe extends itself.

    Raises:
        ValueError: Naming the entry, the value and what is allowed.
    """

    data: dict[str, Data]
    pairs: dict[str, Pair]
    recipes: dict[str, Recipe]
    tables: dict[str, Table]

    def __post_init__(self) -> None:
        for name, pair in self.pairs.items():
            _known(pair.data, self.data, f"pairs.{name}.data")
            if "num_blocks" not in pair.training:
                raise ValueError(f"pairs.{name}.training needs num_blocks")
        for name, recipe in self.recipes.items():
            _known(recipe.orders, ORDERS, f"recipes.{name}.orders")
            for other in recipe.pairs:
                _known(other, self.pairs, f"recipes.{name}.pairs")
            list(self._lineage(name))
        for name, table in self.tables.items():
            _known(table.form, FORMS, f"tables.{name}.form")
            if table.rounds < 1:
                raise ValueError(f"tables.{name}.rounds must be at least 1, got {table.rounds}")
            for section in table.sections:
                _known(section.pair, self.pairs, f"tables.{name}: pair")
                _known(section.base, section.recipes, f"tables.{name}, {section.title}: base")
                for recipe_name in section.recipes:
                    _known(recipe_name, self.recipes, f"tables.{name}, {section.title}: recipe")
            if table.form == "variants":
                self._check_times(name, table)

    def _check_times(self, name: str, table: Table) -> None:
        where = f"tables.{name}.times"
        _known(table.times, [other for other, found in self.tables.items() if found.form == "cost"], where)
        timed = {(section.title, section.pair): section.recipes for section in self.tables[table.times].sections}
        for section in table.sections:
            _known((section.title, section.pair), timed, where)
            for recipe in section.recipes:
                _known(recipe, timed[section.title, section.pair], f"{where}, {section.title}")

    def recipe_options(self, recipe: str, pair: str) -> Options:
        """The options of a recipe on a pair, those of the recipes that it extends beneath.

        Over and under: what a recipe says of a pair wins over what it says of all; what it says wins over what
        the recipe that it extends says.
        """
        found: Options = {}
        for ancestor in reversed(list(self._lineage(recipe))):
            found |= ancestor.options | ancestor.pairs.get(pair, {})
        return found

    def _lineage(self, name: str) -> Iterator[Recipe]:
        seen = [name]
        while True:
            recipe = self.recipes[seen[-1]]
            yield recipe
            if recipe.extends is None:
                return
            _known(recipe.extends, self.recipes, f"recipes.{seen[-1]}.extends")
            if recipe.extends in seen:
                raise ValueError(f"recipes.{name} extends itself: {' -> '.join([*seen, recipe.extends])}")
            seen.append(recipe.extends)


def load_definitions(folder: Path = FOLDER) -> Definitions:
    """Read all YAML files of a folder; an entry may stand in any of them. What is under `anchors` is not looked at.

    Raises:
        ValueError: For keys that are unknown or given twice, and names that are not there.
        FileNotFoundError: If the folder has no YAML file.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise FileNotFoundError(f"no definitions (*.yaml) in {folder}")
    entries: dict[str, Options] = {"data": {}, "pairs": {}, "recipes": {}, "tables": {}}
    for path in files:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        # What entries have in common, as YAML anchors.
        content.pop("anchors", None)
        for kind, named in content.items():
            _known(kind, entries, path.name)
            for name, values in named.items():
                if name in entries[kind]:
                    raise ValueError(f"{path.name}: {kind}.{name} is defined twice")
                entries[kind][name] = values
    return Definitions(
        data={name: _read(Data, values, f"data.{name}") for name, values in entries["data"].items()},
        pairs={name: _read(Pair, values, f"pairs.{name}") for name, values in entries["pairs"].items()},
        recipes={name: _read(Recipe, values, f"recipes.{name}") for name, values in entries["recipes"].items()},
        tables={name: _read_table(values, f"tables.{name}") for name, values in entries["tables"].items()},
    )


def _read_table(values: Any, where: str) -> Table:
    table = _read(Table, values, where)
    sections = [_read(Section, section, f"{where}.sections[{i}]") for i, section in enumerate(table.sections)]
    return dataclasses.replace(table, sections=sections)


def _read(kind: type[Kind], values: Any, where: str) -> Kind:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, got {values!r}")
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    for name in values:
        _known(name, [f.name for f in fields], where)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{where} needs {', '.join(missing)}")
    return kind(**values)


def _schedule(options: Options, samples: str) -> str:
    count, epochs = options.get("max_train_samples"), options.get("num_train_epochs", 3)
    return f"{'all' if count is None else f'{count:,}'} {samples} for {epochs} epochs"


def _known(name: object, names: Any, where: str) -> None:
    if name not in names:
        raise ValueError(f"{where}: {name!r} is none of {', '.join(map(str, names))}")
