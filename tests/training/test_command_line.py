"""Options from recipes and from the line: which wins, what is refused, and what is written down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
import yaml

from pwl_hf.training.command_line import RUN_FILE, CommandLine, read_recipe, write_options
from pwl_hf.training.pairs import parse_pairs


class Schedule(Enum):
    COSINE = "cosine"
    NO = "no"


@dataclass
class Numbers:
    steps: int = -1
    rate: float = 0.1
    switch: bool = True
    maybe: bool | None = None
    output_dir: str | None = None
    hub_token: str | None = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate must not be negative, got {self.rate}")


@dataclass
class Words:
    names: list[str] | None = None
    counts: list[int] = field(default_factory=list)
    schedule: Schedule | str = Schedule.COSINE
    how: Literal["spread", "first"] | None = None
    settings: dict | str | None = None


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "known.yaml").write_text("rate: 1e-3\nsteps: 5\nnames: [a, b]\n")
    return folder


@pytest.fixture
def line(recipes: Path) -> CommandLine:
    return CommandLine([Numbers, Words], "train.py", "Train.", recipes=recipes)


def refused(line: CommandLine, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        line.parse(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_line_wins_over_recipes_and_a_later_recipe_over_an_earlier_one(line, tmp_path):
    (tmp_path / "later.json").write_text(json.dumps({"steps": 7, "switch": False, "schedule": "no"}))
    numbers, words = line.parse(["known", str(tmp_path / "later.json"), "--rate", "0.5"]).parts
    assert (numbers.steps, numbers.rate, numbers.switch) == (7, 0.5, False)
    assert (words.names, words.schedule) == (["a", "b"], "no")


def test_recipe_is_found_by_name_with_and_without_suffix_and_by_path(line, recipes):
    for name in ("known", "known.yaml", str(recipes / "known.yaml")):
        assert line.parse([name]).parts[0].rate == 1e-3


def test_unknown_recipe_names_those_that_exist(line, capsys):
    assert "recipe 'unknwon' is no file, and no recipe of that name exists; there are known" in refused(
        line, ["unknwon"], capsys
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ratte: 1", "'ratte' is no option of this script"),
        ("rate: fast", "rate must be a number, got 'fast'"),
        ("rate: true", "rate must be a number, got True"),
        ("steps: 1.5", "steps must be a whole number, got 1.5"),
        ("steps: [1]", "steps takes one value, got the list [1]"),
        ("counts: [1, two]", "counts must be a whole number, got 'two'"),
        ("switch: 3", "switch must be true or false, got 3"),
        ("schedule: linear", "schedule must be one of cosine, no, got 'linear'"),
        ("schedule: no", "schedule must be one of cosine, no, got False (YAML reads yes, no, on and off"),
        ("how: last", "how must be one of spread, first, got 'last'"),
        ("output_dir: no", "output_dir must be text, got False"),
        ("output_dir: {a: 1}", "output_dir takes no mapping, got {'a': 1}"),
        ("rate: 1\nrate: 2", "key 'rate' is given twice, again in line 2"),
        ("- rate", "must map options to values, got list"),
        ("rate: [", "is not readable as a recipe"),
    ],
)
def test_wrong_recipe_is_refused_by_file_and_key(line, tmp_path, capsys, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    told = refused(line, [str(path)], capsys)
    assert message in told
    assert str(path) in told


def test_wrong_value_on_the_line_is_told_by_name(line, capsys):
    assert "rate must not be negative, got -1.0" in refused(line, ["--rate", "-1"], capsys)
    assert "--nothing" in refused(line, ["--nothing", "1"], capsys)
    assert "argument --how" in refused(line, ["--how", "last"], capsys)


def test_abbreviated_option_is_refused(line, capsys):
    assert "--ste" in refused(line, ["--ste", "3"], capsys)


def test_required_option_is_asked_for(recipes, capsys):
    line = CommandLine([Numbers], "train.py", "Train.", recipes=recipes, required=["output_dir"])
    assert "--output_dir is needed" in refused(line, [], capsys)
    assert line.parse(["--output_dir", "out"]).parts[0].output_dir == "out"


def test_null_is_the_default(line, tmp_path):
    (tmp_path / "null.yaml").write_text("rate: null\nnames: null\ncounts: []\n")
    numbers, words = line.parse(["known", str(tmp_path / "null.yaml")]).parts
    assert (numbers.rate, words.names, words.counts) == (0.1, None, [])


def test_mappings_are_words_of_a_list_or_json(line, tmp_path):
    (tmp_path / "mapping.yaml").write_text("names: {depths: [1, 2], act: gelu, eps: 1.0e-6}\nsettings: {power: 2}\n")
    _, words = line.parse([str(tmp_path / "mapping.yaml")]).parts
    assert parse_pairs(words.names, "names") == {"depths": [1, 2], "act": "gelu", "eps": 1e-6}
    assert json.loads(words.settings) == {"power": 2}


def test_pair_without_a_name_is_refused():
    assert parse_pairs(["a=b=c", "n=1e-3"], "x") == {"a": "b=c", "n": 1e-3}
    for word in ("depths", "=3"):
        with pytest.raises(ValueError, match=f"--student_config_overrides takes NAME=VALUE, got '{word}'"):
            parse_pairs([word], "student_config_overrides")


def test_what_was_run_is_a_recipe_of_it_without_token(line, tmp_path):
    argv = ["known", "--steps", "-3", "--schedule", "no", "--no_switch", "--how", "first", "--hub_token", "hf_secret"]
    parsed = line.parse([*argv, "--settings", '{"power": 2}', "--names", "x=1", "y"])
    path = write_options(parsed.options, tmp_path / "out", "training/train.py")
    assert path == tmp_path / "out" / RUN_FILE
    text = path.read_text()
    assert "hf_secret" not in text
    assert "hub_token" not in text
    assert "torch 2" in text
    assert yaml.safe_load(text)["rate"] == 1e-3
    again = line.parse([str(path)])
    assert again.options == parsed.options
    assert again.parts[1] == parsed.parts[1]


def test_json_and_yaml_read_alike(tmp_path):
    (tmp_path / "a.json").write_text('{"rate": 0.001, "names": ["a"]}')
    (tmp_path / "a.yaml").write_text("rate: 0.001\nnames: [a]\n")
    assert read_recipe(tmp_path / "a.json") == read_recipe(tmp_path / "a.yaml")


@dataclass
class Renamed:
    count: int = field(default=1, metadata={"aliases": ["--number"]})


@pytest.mark.parametrize(
    ("recipes", "words", "count"),
    [
        (["number: 2"], [], 2),
        (["count: 3", "number: 2"], [], 2),
        (["number: 2", "count: 3"], [], 3),
        (["count: 3", "number: 2", "count: 4"], [], 4),
        (["number: 2"], ["--count", "5"], 5),
        (["count: 3"], ["--number", "6"], 6),
    ],
)
def test_an_option_of_two_names_is_one_option(tmp_path, recipes, words, count):
    paths = [tmp_path / f"{i}.yaml" for i in range(len(recipes))]
    for path, text in zip(paths, recipes, strict=True):
        path.write_text(text)
    parsed = CommandLine([Renamed], "train.py", "Train.").parse([*map(str, paths), *words])
    assert (parsed.parts[0].count, parsed.options) == (count, {"count": count})


def test_an_option_is_not_given_by_both_names(tmp_path, capsys):
    (tmp_path / "both.yaml").write_text("count: 1\nnumber: 2\n")
    message = refused(CommandLine([Renamed], "train.py", "Train."), [str(tmp_path / "both.yaml")], capsys)
    assert "number and another key are the one option count: give one" in message
