"""Links between the files of the checkout lead to files, and to headings, that exist."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, prose

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
    ROOT / "model_cards" / "README.md",
]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`]*`")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = "".join(c for c in text if c not in string.punctuation or c in "-_")
        anchor, number = kept.strip().replace(" ", "-"), 0
        while (name := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(name)
    return found


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for target in _LINK.findall(_CODE.sub("", prose(page))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, of `two` words\n## Same\n## Same\n```text\n# Not one\n```\n")
    page = tmp_path / "page.md"
    good = ["other.md", "other.md#a-heading-of-two-words", "other.md#same-1", "#here", "https://example.org/nothing"]
    bad = ["gone.md", "other.md#gone", "other.md#not-one", "#there"]
    page.write_text("# Here\n" + "".join(f"[a link]({target})\n" for target in [*good, *bad]) + "`[x](code.md)`\n")
    assert broken(page) == bad


def test_every_page_is_on_the_front_page() -> None:
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = [page.name for page in DOCS.glob("*.md") if page.name != "index.md" and f"({page.name})" not in front]
    assert missing == []
