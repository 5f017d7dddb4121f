"""The pages that no other test runs: their code works as it stands, in its order, and prints what is shown."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub.cli.hf import app as hf_app
from typer.testing import CliRunner

from pwl_hf import PWLForImageClassification
from pwl_hf.cli import app
from pwl_hf.training.train import command_line, train
from tests.docs.pages import DOCS, ROOT, Fence, fences
from tests.hub import HubServer
from tests.once import made_once
from tests.repository.helpers import publish

PAGES = [
    "index",
    "loading",
    "joining",
    "guarantees",
    "runtime",
    "errors",
    "format",
    "offline",
    "migrating",
    "questions",
    "hub",
    "security",
]
OTHERS = ["architecture"]  # It begins with the folders of the code.
QUICK = ["--max_steps", "3", "--teacher_options", "max_steps=3", "--disable_tqdm", "true", "--use_cpu", "true"]


@pytest.fixture
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pwl-hf demo` leaves, of a few steps; not to be written to."""
    return made_once(
        tmp_path_factory,
        "docs-digits-pwl",
        lambda folder: train(command_line().parse(["vit-digits", "--output_dir", str(folder), *QUICK])) and None,
    )


@pytest.fixture
def place(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory that the pages speak of."""
    shutil.copytree(digits, tmp_path / "digits-pwl")
    shutil.copytree(ROOT / "tests" / "fixtures" / "format-v1" / "vit" / "repo", tmp_path / "old-pwl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "hf":
        # Without a terminal it cannot ask.
        hf_app([*arguments, "--yes"], standalone_mode=False)
        return
    assert program == "pwl-hf", command
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (command, done.output, done.exception)


@pytest.mark.parametrize("name", [*PAGES, *OTHERS])
def test_page_runs_and_prints_what_it_shows(
    name: str, place: Path, hub: HubServer, repo_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = DOCS / f"{name}.md"
    if "org/pwl-vit" in page.read_text(encoding="utf-8"):
        publish(hub, repo_id, place / "digits-pwl")
    if name == "runtime":
        PWLForImageClassification.from_pretrained("digits-pwl").export("digits-pwl")
    namespace: dict[str, object] = {}
    printed = ""
    for number, fence in enumerate(fences(page)):
        content = fence.content.replace("org/pwl-vit", repo_id)
        if fence.language == "bash":
            for line in content.splitlines():
                _run(line.partition("  #")[0])
        elif fence.language == "text":
            assert printed == content, number
            printed = ""
        elif fence.language == "python" and fence.notes != "notest":
            assert printed == "", "output that the page does not show"
            capsys.readouterr()
            exec(compile(content, f"{page.name}, block {number}", "exec"), namespace)
            # The reader's own folder is not shown.
            printed = capsys.readouterr().out.replace(f"{place}/", "")
    assert printed == ""


def test_page_begins_with_what_runs() -> None:
    for name in PAGES:
        before = (DOCS / f"{name}.md").read_text(encoding="utf-8").partition("```")[0]
        assert "\n## " not in before, name


@pytest.mark.parametrize("fence", [f for f in fences(DOCS / "values.md") if f.language], ids=lambda fence: fence.notes)
def test_examples_of_what_we_value_are_in_the_code(fence: Fence) -> None:
    assert fence.content in (ROOT / fence.notes).read_text(encoding="utf-8")
