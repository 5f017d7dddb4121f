"""The command line of the training scripts: options from recipes, and from the line itself, which wins.

A recipe is a YAML or JSON file whose keys are the options' names. Several may be given; a later one wins.
"""

from __future__ import annotations

import json
import platform
import sys
from argparse import Action, ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from pwl_hf.modeling.errors import InputError, PWLError
from pwl_hf.modeling.plain import one_line
from pwl_hf.modeling.repository.files import write_text

RECIPES = Path(__file__).resolve().parent / "recipes"
# What a run was given, in its output folder; a recipe itself.
RUN_FILE = "training_args.yaml"
_SUFFIXES = (".yaml", ".yml", ".json")
_SECRET = frozenset({"hub_token"})
_LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors", "captum", "numpy")


@dataclass(frozen=True)
class Parsed:
    """What a command line says.

    Args:
        parts: The dataclasses, in the order they were asked for.
        options: Every option by name, as a recipe would give it: no defaults are left to guess, no token is in it.
    """

    parts: tuple[Any, ...]
    options: dict[str, Any]


class CommandLine:
    """Reads `[RECIPE ...] [--option value ...]` into dataclasses.

    Args:
        parts: The dataclasses; no two have a field in common.
        program: What the script is called.
        description: A sentence about it.
        recipes: Where recipes are that are given by name, such as `vit-digits`.
        required: Options that must be given, in a recipe or on the line.

    Example:

        >>> from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
        >>> line = CommandLine([ObjectiveArguments], "train.py", "Train.")
        >>> (objective,) = line.parse(["--alpha", "0.1"]).parts
        >>> objective.alpha
        0.1
    """

    def __init__(
        self,
        parts: Sequence[type],
        program: str,
        description: str,
        *,
        recipes: Path = RECIPES,
        required: Sequence[str] = (),
    ) -> None:
        self.recipes = recipes
        self.required = tuple(required)
        names = ", ".join(self._known_recipes())
        self.parser = HfArgumentParser(
            cast(Any, list(parts)),
            prog=program,
            # argparse would list all options a second time.
            usage="%(prog)s [RECIPE ...] [--option value ...]",
            description=description,
            epilog=f"RECIPE is a YAML or JSON file of options, or one of: {names}. Later ones win, the line over all.",
            allow_abbrev=False,
        )
        self._actions = {action.dest: action for action in reversed(self.parser._actions) if action.dest != "help"}
        # Further names of options, such as `num_stages`.
        aliases = {word.lstrip("-"): action for action in self.parser._actions for word in action.option_strings}
        self._aliases = {
            name: action.dest
            for name, action in aliases.items()
            if name != action.dest and not name.startswith("no_") and self._actions.get(action.dest) is action
        }
        self._mappings = {
            name
            for part in parts
            for name, hint in get_type_hints(part).items()
            if any(get_origin(kind) is dict or kind is dict for kind in (hint, *get_args(hint)))
        }

    def parse(self, argv: Sequence[str], *, over: Mapping[str, Any] | None = None, origin: str = "over") -> Parsed:
        """The dataclasses of a command line; what is wrong with it ends the program with a message and status 2.

        Args:
            argv: Its words.
            over: Options as in a recipe, which come after all recipes and before the line.
            origin: What an error calls where these come from.
        """
        words = list(argv)
        count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        try:
            given: dict[str, list[str]] = {}
            for recipe in words[:count]:
                path = self.find(recipe)
                given |= self._named_words(str(path), read_recipe(path))
            given |= self._named_words(origin, over or {})
            recipe_words = [word for value in given.values() for word in value]
            namespace = vars(self.parser.parse_args([*recipe_words, *words[count:]]))
            for name in self.required:
                if namespace[name] is None:
                    raise ValueError(f"--{name} is needed: give it on the line or in a recipe")
            options = {
                name: value.value if isinstance(value, Enum) else value
                for name, value in namespace.items()
                if value is not None and value != [] and name not in _SECRET
            }
            parts = self.parser.parse_dict(dict(namespace))
        except (OSError, ValueError) as error:
            self.parser.error(str(error))
        return Parsed(tuple(parts), options)

    def find(self, recipe: str) -> Path:
        """The file of a recipe given by path or by name.

        Raises:
            FileNotFoundError: If there is none, with the names that exist.
        """
        path = Path(recipe)
        if path.is_file():
            return path
        for suffix in _SUFFIXES if path.name == recipe else ():
            if (found := self.recipes / f"{path.name.removesuffix(suffix)}{suffix}").is_file():
                return found
        raise FileNotFoundError(
            f"recipe {recipe!r} is no file, and no recipe of that name exists; there are "
            f"{', '.join(self._known_recipes()) or 'none'}"
        )

    def _known_recipes(self) -> list[str]:
        return sorted(path.stem for path in self.recipes.glob("*") if path.suffix in _SUFFIXES)

    def _named_words(self, path: str, recipe: Mapping[str, Any]) -> dict[str, list[str]]:
        """By option, each key and its value as the command line would have them."""
        found: dict[str, list[str]] = {}
        for key, value in recipe.items():
            name = self._aliases.get(key, key)
            if name in found:
                raise ValueError(f"{path}: {key} and another key are the one option {name}: give one")
            found[name] = self._words(path, name, value)
        return found

    def _words(self, path: str, key: str, value: Any) -> list[str]:
        """A key and its value as the command line would have them."""
        action = self._actions.get(key)
        if action is None:
            raise ValueError(f"{path}: {key!r} is no option of this script; --help lists them")
        if value is None:
            return []
        is_list = action.nargs == "+"
        if is_list and isinstance(value, Mapping):
            value = [f"{name}={json.dumps(entry)}" for name, entry in value.items()]
        if isinstance(value, Mapping) and key not in self._mappings:
            raise ValueError(f"{path}: {key} takes no mapping, got {dict(value)!r}")
        if isinstance(value, list) and not is_list:
            raise ValueError(f"{path}: {key} takes one value, got the list {value!r}")
        values = value if isinstance(value, list) else [value]
        found = [self._word(path, key, action, entry) for entry in values]
        if is_list:
            return [f"--{key}", *found] if found else []
        return [f"--{key}={found[0]}"]

    def _word(self, path: str, key: str, action: Action, value: Any) -> str:
        is_switch = isinstance(value, bool)
        word = json.dumps(value) if isinstance(value, Mapping) or is_switch else str(value)
        try:
            if is_switch and action.type is not string_to_bool:
                raise ValueError
            parsed = action.type(word) if callable(action.type) else word
            if action.choices is not None and parsed not in action.choices:
                raise ValueError
        except (ValueError, TypeError, ArgumentTypeError):
            allowed = None if action.choices is None else ", ".join(map(str, action.choices))
            names = {string_to_bool: "true or false", int: "a whole number", float: "a number", str: "text"}
            expected = f"one of {allowed}" if allowed else names.get(action.type, str(action.type))  # type: ignore[call-overload]
            hint = " (YAML reads yes, no, on and off without quotes as true and false)" if is_switch else ""
            raise ValueError(f"{path}: {key} must be {expected}, got {value!r}{hint}") from None
        return word


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a key given twice is an error, not a riddle."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping.

        Raises:
            ValueError: If a key is there twice.
        """
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"key {key!r} is given twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_recipe(path: Path) -> dict[str, Any]:
    """The options of a recipe, unchecked.

    Raises:
        ValueError: If it is no mapping of options, or not readable as YAML or JSON, with the file's name.
    """
    try:
        # JSON is YAML.
        read = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not readable as a recipe: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(key, str) for key in read):
        raise ValueError(f"{path} must map options to values, got {type(read).__name__}")
    return read


def write_options(options: Mapping[str, Any], folder: Path, program: str) -> Path:
    """Write down what was run, as a recipe that runs it again.

    Args:
        options: Every option (see `Parsed`).
        folder: The run's folder.
        program: The script that runs it.

    Returns:
        The file: the options, and in comments the versions of Python and of the libraries.
    """
    versions = ["Python " + platform.python_version()]
    for library in ("pwl-hf", *_LIBRARIES):
        try:
            versions.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    path = folder / RUN_FILE
    text = yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True, width=1000)
    head = f"# What was run; accelerate launch {program} {RUN_FILE} runs it again.\n# With {', '.join(versions)}.\n"
    write_text(path, head + text)
    return path


@contextmanager
def told_in_a_line(program: str) -> Iterator[None]:
    """End a program with one line for errors of ours: with status 2 for wrong input, with 1 for all others.

    Args:
        program: What the script is called.
    """
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"{program}: {error}\n")
        sys.exit(2)
    except StrictDataclassError as error:
        # The reason alone: networks that cannot be joined, say.
        sys.exit(f"{program}: {one_line(str(error.__cause__ or error))}")
    except PWLError as error:
        sys.exit(f"{program}: {error}")
