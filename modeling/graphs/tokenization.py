"""How a repository's texts become tokens: what transformers' tokenizer is set to, found when graphs are exported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import RepositoryError

SIDES = ("left", "right")


@dataclass(frozen=True)
class Tokenization:
    """What the `tokenizers` library needs to know besides the repository's `tokenizer.json`.

    Args:
        sha256: The hash of that file, in hex digits.
        inputs: What the tokenizer makes for the networks, in their words, such as `input_ids`.
        padding_side: Where padding goes.
        truncation_side: Where a text that is too long is cut.
        pad_token_id: The token of padding.
        pad_token_type_id: Its type.
        unk_token_id: The token of what is in no vocabulary, if there is one.
        splits_special_tokens: Whether special tokens in a text are taken for ordinary characters.
        max_length: The most tokens of a text that tokenizer and networks take; None if they set no limit.
    """

    sha256: str
    inputs: tuple[str, ...]
    padding_side: str
    truncation_side: str
    pad_token_id: int
    pad_token_type_id: int
    unk_token_id: int | None
    splits_special_tokens: bool
    max_length: int | None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the index."""
        return asdict(self)

    @classmethod
    def of(cls, where: str, data: Mapping[str, Any]) -> Tokenization:
        """What an index says.

        Args:
            where: What an error calls the index.
            data: What it says.

        Raises:
            RepositoryError: If a field is missing or of another kind.
        """
        found: dict[str, Any] = {name: data.get(name) for name in cls.__dataclass_fields__}
        inputs = found["inputs"]
        if not isinstance(inputs, list) or not all(isinstance(name, str) for name in inputs):
            raise _wrong(where, "inputs", inputs, "a list of names")
        if not isinstance(found["sha256"], str) or not re.fullmatch(r"[0-9a-f]{64}", found["sha256"]):
            raise _wrong(where, "sha256", found["sha256"], "64 hex digits")
        for name in ("padding_side", "truncation_side"):
            if found[name] not in SIDES:
                raise _wrong(where, name, found[name], " or ".join(SIDES))
        for name, least in (("pad_token_id", 0), ("pad_token_type_id", 0), ("unk_token_id", 0), ("max_length", 1)):
            value, may_lack = found[name], name in ("unk_token_id", "max_length")
            if not (value is None and may_lack) and (type(value) is not int or value < least):
                raise _wrong(where, name, value, f"a whole number of at least {least}")
        if not isinstance(found["splits_special_tokens"], bool):
            raise _wrong(where, "splits_special_tokens", found["splits_special_tokens"], "true or false")
        return cls(**{**found, "inputs": tuple(inputs)})


def _wrong(where: str, name: str, value: Any, wanted: str) -> RepositoryError:
    return RepositoryError(f"{where}: {name} of the tokenizer must be {wanted}, got {value!r:.100}")
