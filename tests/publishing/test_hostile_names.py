"""Names that a repository brings reach neither the card as markup nor the terminal as escapes; odd cards are kept."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from rich.console import Console

from pwl_hf import RepositoryError
from pwl_hf.console import stage_table
from pwl_hf.modeling.publishing import model_card
from pwl_hf.modeling.publishing.model_card import own_words, write_card
from pwl_hf.modeling.repository.manifest import Manifest, Metric
from pwl_hf.modeling.repository.source import Repository
from tests.repository.helpers import INDEX, edit_json
from tests.slow import covering
from tests.tiny import tiny_model

BEGIN, END = model_card._BEGIN, model_card._END
NAMES = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\n---\nlicense: evil\n---\n# b",
    "a\r\n---\r\nlicense: evil",
    "a | b |\n| --- |",
    f"a {END} b {BEGIN}",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/track.png)",
    "`` ` ``",
    "{{ config }} {% raw %}",
    "!!python/object/apply:os.system ['true']",
    "&anchor *alias",
    "\x1b[31mred\x1b]0;title\x07\u202e",
    "[red]markup[/red] [link=https://evil.example]x[/link] [/]",
    "- item: {a: b}",
    "#",
    " ",
    "\ud800",
    "x" * 10_000,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("vit").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def measured(folder: Path, **changes: Any) -> Manifest:
    """The folder's manifest, each of its stages measured under these names."""
    metric = Metric(**{"name": "accuracy", "value": 0.5, "dataset": "digits", "split": "test", "n": 5, **changes})
    manifest = Manifest.from_json((folder / INDEX).read_bytes())
    manifest = manifest.with_metrics({stage.stage: (metric,) for stage in manifest.stages})
    (folder / INDEX).write_text(manifest.to_json())
    return manifest


@pytest.mark.parametrize(("name", "field"), covering(NAMES, ["name", "dataset", "split"]))
def test_names_reach_the_card_as_text_alone(folder, field, name):
    measured(folder, **{field: name})
    text = write_card(folder).read_bytes().decode()
    assert text.count(BEGIN) == text.count(END) == 1
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "license" not in yaml.safe_load(front)
    body = body.replace(BEGIN, "").replace(END, "")
    assert "<" not in body
    assert "evil.example" not in body or "://evil" not in body
    for harm in ("[click]", "![x]", "\x1b", "\u202e", "\n---\n"):
        assert harm not in body
    columns = {line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    # Written again, nothing is lost and nothing is added.
    assert write_card(folder).read_bytes().decode() == text
    assert ModelCard(text).data.to_dict()["library_name"] == "pwl-hf"


@pytest.mark.parametrize("name", NAMES)
def test_names_reach_the_table_on_the_terminal_plainly(folder, name):
    manifest = measured(folder, name=name)
    out = io.StringIO()
    stage_table(
        manifest, Console(file=out, width=400, force_terminal=True, color_system="truecolor", legacy_windows=False)
    )
    text = out.getvalue()
    for harm in ("\x1b[31m", "\x1b]", "\x07", "\u202e"):
        assert harm not in text
    if name.startswith("[red]"):
        assert "[red]markup[/red]" in text


@pytest.mark.parametrize(("name", "key"), covering(NAMES, ["dtype", "fingerprint"]))
def test_info_of_a_repository_is_printed_plainly(folder, capsys, monkeypatch, key, name):
    from pwl_hf.cli import main

    edit_json(folder / INDEX, lambda index: index.update({key: name}))
    monkeypatch.setattr("sys.argv", ["pwl-hf", "info", str(folder)])
    with contextlib.suppress(SystemExit):
        main()
    printed = capsys.readouterr()
    assert not [c for c in printed.out + printed.err if not c.isprintable() and c != "\n"]
    # No line of its own: the one that is printed, or the table's.
    assert not [line for line in printed.out.splitlines() if line.startswith(("license", "---", "#"))]


@pytest.mark.parametrize("dtype", ["<script>", "a`b", "[x](y)"])
def test_dtype_reaches_the_card_as_text(folder, dtype):
    edit_json(folder / INDEX, lambda index: index.update(dtype=dtype))
    body = write_card(folder).read_text()
    assert dtype not in body


@pytest.mark.parametrize("relative", [True, False])
def test_base_model_that_names_a_local_file_is_not_read(folder, tmp_path, monkeypatch, relative):
    secret = tmp_path / "org" / "name"
    secret.parent.mkdir()
    secret.write_text("---\nlicense: secret\n---\n")
    monkeypatch.chdir(tmp_path)
    edit_json(folder / "config.json", lambda config: config.update(base_model="org/name" if relative else str(secret)))
    text = write_card(folder).read_text()
    assert "secret" not in text
    if not relative:
        assert str(secret) not in text


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b/c", "/etc/passwd", ".", "..", "a/../b", "a b", "<b>", "a\nb", "", "x/.", 5, ["a"], {"a": 1}, None],
)
def test_base_model_that_can_be_no_id_is_left_out(folder, name):
    edit_json(folder / "config.json", lambda config: config.update(base_model=name))
    assert "base_model" not in ModelCard(write_card(folder).read_text()).data.to_dict()


@pytest.mark.parametrize(
    "content", [b"---\nlicense: [\n---\n", b"\xff\xfe", b"---\nlicense: 5\n---\n", b"---\n- a\n---\n", b""]
)
def test_teachers_card_that_cannot_be_read_gives_no_licence(hub, repo_id, folder, content):
    hub.store.create_repo(repo_id)
    hub.store.commit(repo_id, {"README.md": content})
    edit_json(folder / "config.json", lambda config: config.update(base_model=repo_id))
    data = ModelCard(write_card(folder).read_text()).data.to_dict()
    assert "license" not in data
    assert data["base_model"] == repo_id


ORDERS = {
    "end first": f"one\n{END}\ntwo\n{BEGIN}\nthree\n",
    "begin alone": f"one\n{BEGIN}\ntwo\n",
    "end alone": f"one\n{END}\ntwo\n",
    "begin twice": f"one\n{BEGIN}\ntwo\n{BEGIN}\nold\n{END}\nthree\n",
    "end twice": f"one\n{BEGIN}\nold\n{END}\ntwo\n{END}\nthree\n",
    "two parts": f"one\n{BEGIN}\nold\n{END}\ntwo\n{BEGIN}\nthree\n{END}\n",
}


@pytest.mark.parametrize("order", ORDERS)
def test_markers_out_of_order_lose_no_text(folder, order):
    card = folder / "README.md"
    card.write_text(ORDERS[order])
    for _ in range(3):
        write_card(folder)
        text = card.read_text()
        assert all(word in text for word in ("one", "two", *(["three"] if "three" in ORDERS[order] else [])))
        assert text.count("## Stages") == 1
        assert all(word in own_words(text) for word in ("one", "two"))


@pytest.mark.parametrize(
    "content",
    [
        b"---\nlicense: [\n---\n# mine\n",
        b"---\na: b: c\n---\n",
        b"\xff\xfe# mine",
        "# mine".encode("utf-16"),
        b"---\n- a\n---\n",
    ],
)
def test_card_that_cannot_be_kept_is_named_and_stays(folder, content):
    card = folder / "README.md"
    card.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"README\.md"):
        write_card(folder)
    assert card.read_bytes() == content


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling link"])
def test_what_is_no_file_in_a_cards_place_is_named(folder, kind):
    card = folder / "README.md"
    {"fifo": os.mkfifo, "folder": os.mkdir, "dangling link": lambda path: os.symlink("nowhere", path)}[kind](card)
    os.mkfifo(folder / "other.json")
    with pytest.raises(RepositoryError, match=r"README\.md"):
        write_card(folder)


def test_pushed_names_are_plain_as_well(hub, repo_id, folder):
    from pwl_hf.modeling.publishing.push import Target, push_folder

    measured(folder, name="<script>", dataset="a\n---\n")
    edit_json(folder / "config.json", lambda config: config.update(base_model="/etc/passwd"))
    push_folder(folder, Target(repo_id))
    card = ModelCard.load(repo_id).content
    assert "<script>" not in card
    assert "passwd" not in card
    assert json.loads((folder / INDEX).read_text())["stages"][0]["metrics"][0]["name"] == "<script>"
    assert Repository.open(repo_id).manifest().stages[0].metrics[0].name == "<script>"


CONFIGS = [
    b"",
    b"[]",
    b"null",
    b"{}",
    b'{"teacher_config": 5}',
    b'{"teacher_config": {"model_type": 5}}',
    b"\xff",
    b"[" * 9**6,
]


@pytest.mark.parametrize("content", CONFIGS, ids=lambda content: repr(content[:40]))
def test_config_that_is_none_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(RepositoryError, match=r"config\.json is no config of a PWL model"):
        write_card(folder)


def test_card_longer_than_any_is_not_read(folder):
    with (folder / "README.md").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(RepositoryError, match="8589934592 bytes"):
        write_card(folder)
