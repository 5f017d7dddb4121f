"""`pwl-hf evaluate` of a repository with low precision: every rung in the table, the picture and the manifest."""

from __future__ import annotations

import json
import re

from typer.testing import CliRunner

from pwl_hf.cli import app
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.quantising import quantise_repository

LADDER = ["SSSS", "QSSS", "QQSS", "QQQS", "QQQQ", "TQQQ", "TTQQ", "TTTQ", "TTTT"]


def test_every_rung_is_measured_drawn_and_written(saved, tmp_path):
    folder = tmp_path / "repo"
    quantise_repository(str(saved), folder, target=Target("none"))
    plot, output = tmp_path / "rungs.svg", tmp_path / "rungs.json"
    options = ["--dataset", "digits", "--max-samples", "40", "--quiet", "--write-metrics"]
    found = CliRunner().invoke(app, ["evaluate", str(folder), *options, "--plot", str(plot), "-o", str(output)])
    assert found.exit_code == 0, found.output
    assert [mask for mask in re.findall(r"\b[SQT]{4}\b", found.output) if mask in LADDER][:9] == LADDER
    drawn = " ".join(re.findall(r"<!-- (.*?) -->", plot.read_text()))
    assert re.findall(r"\b[SQT]{4}\b", drawn) == LADDER
    measured = [mask["sources"] for mask in json.loads(output.read_text())["masks"]]
    assert measured == LADDER
    stages = Repository.open(folder).manifest().stages
    assert [stage.metrics[0].n for stage in stages] == [40] * 9
