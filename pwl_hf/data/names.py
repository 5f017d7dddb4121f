"""Names of labels that are numbers (pure Python)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Where a token has no label: what transformers' losses pass over.
NO_LABEL = -100

# A class folder called 7 or 07; LABEL_7 is what transformers calls a class without a name.
_NUMBER = re.compile(r"(?:LABEL_)?([0-9]{1,18})")


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The numbers that names stand for, `"7"`, `"07"` or `"LABEL_7"`; None unless all of them do, each for its own."""
    found = [_NUMBER.fullmatch(name) for name in names]
    numbers = [int(match[1]) for match in found if match is not None]
    return numbers if len(set(numbers)) == len(names) else None


def in_order(names: Sequence[str]) -> list[str]:
    """Names as they are, but numbers by their value: `datasets` sorts class folders as text, `0, 1, 10, 11, 2`."""
    numbers = numbers_of(names)
    return list(names) if numbers is None else [name for _, name in sorted(zip(numbers, names, strict=True))]
