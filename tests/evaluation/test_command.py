"""`pwl-hf evaluate`, as a user runs it."""

from __future__ import annotations

import json
import os
import sys

import pytest

from pwl_hf.cli import main
from pwl_hf.data import DataSource
from pwl_hf.evaluation import evaluate_repository, masks_of
from pwl_hf.modeling.repository.source import Repository
from tests.children import python
from tests.repository.helpers import tree

FEW = ["--dataset", "digits", "--max-samples", "60", "--quiet"]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pwl-hf", "evaluate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_table_has_a_line_a_stage_and_says_what_it_comes_to(run, saved):
    code, out, err = run(saved, *FEW)
    assert code == 0, err
    report = evaluate_repository(saved, DataSource("digits", max_samples=60))
    for mask in report.evaluation.masks:
        (line,) = [line for line in out.splitlines() if f" {mask.sources} " in line and "│" in line]
        low, high = mask.interval
        assert f"{mask.accuracy:.2%}" in line
        assert f"{100 * low:.1f} to {100 * high:.1f}" in line
    assert "60 images: digits, split test" in out
    assert f"over the bytes: {report.area:.4f}" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "│" in line)


@pytest.mark.parametrize("orders", ["suffix", "contiguous", "all"])
def test_other_orders_name_the_masks_below_the_student(run, saved, tmp_path, orders):
    code, out, err = run(saved, *FEW, "--orders", orders, "-o", tmp_path / "found.json")
    assert code == 0, err
    shown = [line.split()[1] for line in out.splitlines() if line.startswith("│")]
    assert shown == masks_of(orders, 4)
    below = json.loads((tmp_path / "found.json").read_text())["below_student"]
    expected = f"{len(below)} of {len(shown)} masks below the student: {', '.join(below)};" if below else "No mask is"
    assert expected in out


def test_everything_asked_for_is_written(run, folder, tmp_path):
    output, plot = tmp_path / "new" / "found.json", tmp_path / "new" / "found.png"
    code, _, err = run(folder, *FEW, "--output", output, "--plot", plot, "--write-metrics", "--batch-size", "7")
    assert code == 0, err
    data = json.loads(output.read_text())
    assert data["settings"]["batch_size"] == 7
    assert plot.read_bytes().startswith(b"\x89PNG")
    values = [stage.metrics[0].value for stage in Repository.open(folder).manifest().stages]
    assert values == [row["accuracy"] for row in data["masks"]]
    assert sorted(path.name for path in output.parent.iterdir()) == ["found.json", "found.png"]


def test_label_names_are_given_one_by_one(run, saved):
    names = [part for name in "0123456789" for part in ("--label-names", name)]
    assert run(saved, *FEW, *names)[1] == run(saved, *FEW)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits", "--orders", "random"], "prefix, suffix, contiguous, all, got 'random'"),
        (["--dataset", "digits", "--split", "validation"], "no split 'validation'; it has 'train', 'test'"),
        (["--dataset", "no/such/data"], "no/such/data"),
        (["--dataset", "digits", "--plot", "found.bmp"], "'found.bmp' must end in one of .png, .svg, .pdf"),
        (["--dataset", "digits", "--write-metrics", "--orders", "suffix"], "--write-metrics"),
        (["--dataset", "digits", "--write-metrics", "--dtype", "bfloat16"], "--write-metrics"),
        (["--dataset", "digits", "--max-samples", "0"], "--max-samples"),
    ],
)
def test_what_cannot_be_done_ends_with_a_message_and_changes_nothing(run, folder, arguments, message):
    before = tree(folder)
    code, _, err = run(folder, *arguments)
    assert code != 0
    assert message in err
    assert "Traceback" not in err
    assert tree(folder) == before


def test_metrics_cannot_be_written_to_the_hub(run, repo_id):
    code, _, err = run(repo_id, *FEW, "--write-metrics")
    assert code != 0
    assert "needs a folder" in err


def test_dataset_is_asked_for(run, saved):
    code, _, err = run(saved)
    assert code == 2
    assert "--dataset" in err


def test_progress_goes_to_stderr_unless_quiet(run, saved):
    _, _, err = run(saved, "--dataset", "digits", "--max-samples", "60")
    assert "stage 1 TSSS" in err
    assert "stage" not in run(saved, *FEW)[2]


def without(*packages: str) -> str:
    """Code that runs the command in a process that lacks some packages."""
    return (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "real = PathFinder.find_spec\n"
        "def find_spec(cls, name, *rest):\n"
        f"    return None if name.split('.')[0] in {packages!r} else real(name, *rest)\n"
        "PathFinder.find_spec = classmethod(find_spec)\n"
        f"for name in [name for name in sys.modules if name.split('.')[0] in {packages!r}]:\n"
        "    del sys.modules[name]\n"
        "from pwl_hf.cli import main\n"
        "sys.argv[0] = 'pwl-hf'\n"
        "main()\n"
    )


def test_command_needs_nothing_of_the_train_extra(saved, tmp_path):
    arguments = ["evaluate", saved, *FEW, "--plot", tmp_path / "a.svg", "-o", tmp_path / "a.json"]
    code = without("accelerate", "captum", "peft", "torchvision")
    done = python(code, {**os.environ, "HF_HUB_OFFLINE": "1"}, arguments=arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.json").is_file()
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("package", "arguments"), [("datasets", []), ("matplotlib", ["--plot", "a.png"]), ("sklearn", [])]
)
def test_missing_package_is_named_with_the_extra(saved, package, arguments):
    done = python(without(package), arguments=["evaluate", saved, *FEW, *arguments])
    assert done.returncode == 1
    assert package.replace("sklearn", "scikit-learn") in done.stderr
    assert 'pip install "pwl-hf[evaluate]"' in done.stderr
    assert "Traceback" not in done.stderr
