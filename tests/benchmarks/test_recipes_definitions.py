"""What is compared is checked before anything runs."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml

from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.runs import Run, filled, runs_of
from pwl_hf.training import train, train_teacher
from pwl_hf.training.command_line import RECIPES, read_recipe
from pwl_hf.training.objective.objective_arguments import ObjectiveArguments
from tests.benchmarks.stand_ins import DEFINITIONS, write_definitions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": {"p": {"title": "", "data": "none", "teacher": {}, "training": {"num_blocks": 1}}}}, "'none'"),
        ({"pairs": {"p": {"title": "", "data": "toy", "teacher": {}, "training": {}}}}, "num_blocks"),
        ({"recipes": {"a": {"title": "", "extends": "b"}, "b": {"title": "", "extends": "a"}}}, "extends itself"),
        ({"recipes": {"a": {"titel": ""}}}, "'titel'"),
        ({"recipes": {"a": {}}}, "needs title"),
        ({"recipes": {"a": {"title": "", "orders": "some"}}}, "'some'"),
        ({"tables": {"t": {"title": "", "form": "graph", "sections": []}}}, "'graph'"),
        (
            {"tables": {"t": {"title": "", "form": "orders", "sections": [{"title": "", "pair": "small"}]}}},
            "needs recipes, base",
        ),
        ({"tables": {"t": DEFINITIONS["tables"]["variants"] | {"times": "t"}}}, r"tables\.t\.times: 't'"),
        (
            {"tables": {n: DEFINITIONS["tables"][n] | {"times": "speed"} for n in ("variants", "speed")}},
            r"variants\.times, Small: 'plain' is none of paper, ours",
        ),
        ({"models": {}}, "'models'"),
    ],
)
def test_wrong_definitions_are_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_definitions(write_definitions(tmp_path / "wrong", change))


def test_entry_that_is_defined_twice_is_refused(tmp_path):
    folder = write_definitions(tmp_path / "twice")
    (folder / "more.yaml").write_text(yaml.safe_dump({"data": DEFINITIONS["data"]}))
    with pytest.raises(ValueError, match=r"data\.toy is defined twice"):
        load_definitions(folder)


def test_what_is_said_of_a_pair_wins_over_what_is_said_of_all(definitions):
    assert definitions.recipe_options("ours", "small") == {"weight": 2}
    assert definitions.recipe_options("ours", "other") == {"weight": 3}


# The options of the objective but for those of terms that are off by default.
OFF = ("attention_", "relation_", "mixup_")
WEIGHED = [field.name for field in fields(ObjectiveArguments) if not field.name.startswith(OFF)]


def every_run() -> list[Run]:
    definitions = load_definitions()
    tables = definitions.tables.values()
    return list({run.key: run for table in tables for run in runs_of(definitions, table, [0])}.values())


@pytest.mark.parametrize("script", [train_teacher, train], ids=["train_teacher", "train"])
def test_every_run_is_of_options_that_its_script_takes(tmp_path, script):
    runs = every_run()
    trainings = [run.training if script is train else run.training.teacher for run in runs]
    line = script.command_line()
    # Published weights have a script of their own.
    given = {training.key: training for training in trainings if training.script == script.__name__.rpartition(".")[2]}
    for training in given.values():
        options = filled(training.options, {"data": tmp_path, "teacher": tmp_path}) | {"output_dir": str(tmp_path)}
        recipe = tmp_path / f"{training.key}.yaml"
        recipe.write_text(yaml.safe_dump(options | ({"teacher": "teacher"} if script is train else {})))
        line.parse([str(recipe)])


def test_paper_is_the_recipe_that_the_scripts_offer():
    offered, ours = read_recipe(RECIPES / "paper.yaml"), load_definitions().recipe_options("paper-drift", "resnet")
    assert {name: offered[name] for name in ours} == ours


def test_quick_is_the_recipe_that_the_scripts_offer():
    definitions = load_definitions()
    ours, quick = (definitions.recipe_options(recipe, "resnet") for recipe in ("ours", "quick"))
    assert {name: value for name, value in quick.items() if value != ours[name]} == read_recipe(RECIPES / "quick.yaml")


def test_ours_is_the_objective_by_default():
    ours = load_definitions().recipe_options("ours", "resnet")
    assert ours["mask_alpha"] == ours["alpha"]
    defaults = {field.name: field.default for field in fields(ObjectiveArguments)} | {"mask_alpha": ours["alpha"]}
    assert {name: ours[name] for name in WEIGHED} == {name: defaults[name] for name in WEIGHED}


@pytest.mark.parametrize("recipe", ["paper-drift", "ours"])
def test_no_default_of_the_objective_decides_unsaid(recipe):
    assert set(load_definitions().recipe_options(recipe, "resnet")) >= set(WEIGHED)
