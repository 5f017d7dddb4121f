"""What others say reaches no terminal as it is, and no web page as markup."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys

import pytest

from pwl_hf.modeling import errors
from pwl_hf.modeling.plain import in_markdown, one_line, plain

HARMFUL = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;title\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "one-byte escape": "\x9b31m\x9d0;title\x9c",
    "carriage return": "refused\rloaded!",
    "backspace": "refused\b\b\b\b\b\b\bloaded",
    "screen": "\x1bc\x0c\x0b",
    "null": "a\0b",
    "delete": "a\x7fb",
    "right to left": "\u202egnp.exe\u2066\u2069",
    "invisible": "a\u200bb\u2060c\ufeff\u00ad",
    "line separator": "a\u2028b\u2029c\x85d",
    "surrogate": "a\ud800b",
    "tag characters": "\U000e0041\U000e007f",
    "private use": "\ue000",
}
HARMLESS = [
    "",
    "accuracy, top-5 (%)",
    "line\nline\tcolumn",
    "Überprüfung",
    "精度\u3000高",
    "Точность",
    "\N{GRINNING FACE}",
]


@pytest.mark.parametrize("kind", HARMFUL)
def test_plain_text_moves_no_cursor_and_hides_nothing(kind):
    for change in (plain, one_line, in_markdown):
        found = change(HARMFUL[kind])
        assert found.isprintable(), found
        found.encode()


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_no_harm_stays(text):
    assert plain(text) == text


def test_very_long_text_keeps_its_ends():
    found = plain("begin" + "x" * 10**7 + "what to do")
    assert len(found) < 5000
    assert found.startswith("begin")
    assert found.endswith("what to do")


ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PWLError)]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("harm", HARMFUL)
def test_every_error_of_ours_says_it_plainly(kind, harm):
    error = kind(f"a name {HARMFUL[harm]}")
    for found in (error, pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert str(found) == plain(f"a name {HARMFUL[harm]}")
        assert str(found).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<!-- pwl-hf: end -->",
        "&lt;b&gt;",
        "[click](https://evil.example)",
        "![](https://evil.example/p.png)",
        "https://evil.example",
        "www.evil.example",
        "you@evil.example",
        "a | b | c",
        "`code`",
        "**bold**",
        "~~gone~~",
        "\\[not\\](x)",
        "# heading",
        "1. item",
        "- item",
        "a\n\n# heading\n\n---\n",
        "$x$",
    ],
)
def test_markdown_shows_names_as_they_are(text):
    found = in_markdown(text)
    assert "\n" not in found
    assert "<" not in found
    assert "://" not in found
    assert "www." not in found
    assert "@" not in found
    # What remains of markup is escaped.
    bare = found.replace("\\\\", "").split("\\")
    assert not set("`*[]|!") & set("".join([bare[0], *(part[1:] for part in bare[1:])]))


def test_tracebacks_of_the_command_line_are_plain(capsys, monkeypatch, tmp_path):
    from pwl_hf.cli import main

    (tmp_path / "pwl_index.json").write_text('{"min_reader": "\\u001b[31m\\u202e"}')
    monkeypatch.setattr(sys, "argv", ["pwl-hf", "info", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "\x1b" not in capsys.readouterr().err
