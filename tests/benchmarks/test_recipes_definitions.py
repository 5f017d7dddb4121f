"""What is compared is checked before anything runs."""

from __future__ import annotations

import pytest
import yaml

from benchmarks.recipes.definitions import load_definitions
from benchmarks.recipes.runs import Run, filled, runs_of
from pwl_hf.training import train_teacher
from tests.benchmarks.stand_ins import DEFINITIONS, write_definitions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": {"p": {"title": "", "data": "none", "teacher": {}, "training": {"num_stages": 1}}}}, "'none'"),
        ({"pairs": {"p": {"title": "", "data": "toy", "teacher": {}, "training": {}}}}, "num_stages"),
        ({"recipes": {"a": {"title": "", "extends": "b"}, "b": {"title": "", "extends": "a"}}}, "extends itself"),
        ({"recipes": {"a": {"titel": ""}}}, "'titel'"),
        ({"recipes": {"a": {}}}, "needs title"),
        ({"recipes": {"a": {"title": "", "orders": "some"}}}, "'some'"),
        ({"tables": {"t": {"title": "", "form": "graph", "sections": []}}}, "'graph'"),
        (
            {"tables": {"t": {"title": "", "form": "orders", "sections": [{"title": "", "pair": "small"}]}}},
            "needs recipes, base",
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


def every_run() -> list[Run]:
    definitions = load_definitions()
    tables = definitions.tables.values()
    return list({run.key: run for table in tables for run in runs_of(definitions, table, [0])}.values())


def test_teachers_are_of_options_that_the_script_knows(tmp_path):
    teachers = {run.training.teacher.key: run.training.teacher for run in every_run()}
    for name, teacher in teachers.items():
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(filled(teacher.options, {"data": tmp_path}) | {"output_dir": str(tmp_path)}))
        train_teacher.command_line().parse([str(recipe)])
