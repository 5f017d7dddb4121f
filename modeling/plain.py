"""Text of others, made plain before a terminal, a log or a web page sees it (pure Python).

What a repository, a data set or a server says may hold sequences that move the cursor, hide letters or set a title, and
markup that becomes links and scripts. It is made plain at the borders: in every error of ours, where the command line
prints, and where a model card is written.
"""

from __future__ import annotations

import re
import unicodedata

# An error that quotes a whole file still shows how it begins, and what to do.
_HEAD, _TAIL = 3000, 1000
_MARKUP = re.compile(r"[\\`*\[\]|!#~$]|^[-+=]|^(?=\d+[.)])")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"})


def plain(text: str) -> str:
    r"""Text without control characters: each is written as Python writes it, but ends of lines and tabs stay.

    Args:
        text: The text; of a very long one the middle is left out.

    Example:

        >>> plain("red: \x1b[31m")
        'red: \\x1b[31m'
    """
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]} ... {text[-_TAIL:]}"
    # Most text needs nothing.
    return text if text.isprintable() else "".join(map(_shown, text))


def one_line(text: str) -> str:
    """As `plain`, on one line."""
    return plain(" ".join(text.split()))


def in_markdown(text: str) -> str:
    """Text that Markdown shows as it is: nothing in it is HTML, a link, emphasis or the end of a table's cell."""
    text = _MARKUP.sub(r"\\\g<0>", one_line(text).translate(_HTML))
    # What looks like an address would become a link by itself.
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def _shown(character: str) -> str:
    if character.isprintable() or character in "\n\t" or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
