"""Options of the form `NAME=VALUE`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`NAME=VALUE` words as a mapping; a value is JSON if it can be read so, and text otherwise.

    Raises:
        ValueError: For a word without a name and `=`, naming the option.
    """
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--{option} takes NAME=VALUE, got {pair!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
