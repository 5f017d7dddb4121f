"""From texts to tokens by the `tokenizers` library: those that transformers' tokenizer makes.

Notation: B texts of at most L tokens.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from pwl_hf.modeling.errors import InputError, RepositoryError
from pwl_hf.modeling.graphs.tokenization import Tokenization

TextInput = str | Mapping[str, str]
Texts = TextInput | Sequence[TextInput]

# Tokenizers that cut, of so many settings, are kept.
_KEPT = 4


def is_one(texts: Texts) -> bool:
    """Whether this is a single text, or a pair, rather than several."""
    return isinstance(texts, str | Mapping)


def read_texts(texts: Texts) -> Iterator[tuple[str, str, str | None]]:
    """What errors call each text, the text, and what it is paired with.

    Args:
        texts: One text or several: each a string, or a mapping with `text` and `text_pair`, as transformers' pipeline
            takes pairs.

    Raises:
        InputError: If there is none, or one is of another kind, named by its number from 0.
    """
    if is_one(texts):
        yield "the text", *_read(texts, "the text")
        return
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Sequence | np.ndarray):
        raise InputError(f"texts must be strings, one or a sequence, got {type(texts).__name__}")
    if len(texts) == 0:
        raise InputError("there are no texts: give at least one")
    for number, text in enumerate(texts):
        yield f"text {number}", *_read(text, f"text {number}")


def _read(text: Any, name: str) -> tuple[str, str | None]:
    if isinstance(text, str):
        return _sound(text, name), None
    if isinstance(text, Mapping) and "text" in text and text.keys() <= {"text", "text_pair"}:
        pair = text.get("text_pair")
        if isinstance(text["text"], str) and isinstance(pair, str | None):
            # An empty second text is none, as in transformers.
            return _sound(text["text"], name), _sound(pair, name) if pair else None
    raise InputError(
        f"{name} must be a string, or have 'text' and 'text_pair', both strings; got {type(text).__name__}: "
        f"{text!r:.100}"
    )


def _sound(text: str, name: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} holds half of a character at {error.start}: give text that is whole") from error
    return text


class Texting:
    """Makes tokens of texts; threads may share it.

    Args:
        content: The repository's `tokenizer.json`.
        settings: What transformers' tokenizer is set to.
        where: What an error calls the repository.

    Raises:
        RepositoryError: If the file is not the one that the graphs were exported with, or is none.
    """

    def __init__(self, content: bytes, settings: Tokenization, where: str) -> None:
        if hashlib.sha256(content).hexdigest() != settings.sha256:
            raise RepositoryError(
                f"{where}: tokenizer.json is not the one that the graphs were exported with; export them again with "
                "`pwl-hf export`"
            )
        try:
            self.tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise RepositoryError(f"{where}: tokenizer.json cannot be read by tokenizers: {error}") from error
        self.settings = settings
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = settings.splits_special_tokens
        self._cutting: dict[int, Tokenizer] = {}
        self._lock = Lock()

    def encodings(self, texts: Texts, *, truncation: bool = False) -> list[Encoding]:
        """What becomes of each text.

        Args:
            texts: One text or several: see `read_texts`.
            truncation: Cut what is too long, rather than refuse it.

        Raises:
            InputError: If one is no text, or of more tokens than the model takes, named by its number from 0.
        """
        tokenizer = self._cutting_by(0, most) if truncation and (most := self.settings.max_length) else self.tokenizer
        found = []
        for name, text, pair in read_texts(texts):
            encoding = tokenizer.encode(text, pair)
            if self.settings.max_length is not None and len(encoding.ids) > self.settings.max_length:
                raise InputError(
                    f"{name} has {len(encoding.ids)} tokens, and the model takes {self.settings.max_length}: shorten "
                    "it, or give truncation=True to have it cut"
                )
            if not encoding.ids:
                raise InputError(f"{name} has no tokens: give one that is not empty")
            found.append(encoding)
        return found

    def pieces(self, text: str, stride: int) -> list[Encoding]:
        """A text in pieces of the longest length, each with so many of the last one's tokens.

        Args:
            text: The text.
            stride: How many tokens two pieces share.

        Raises:
            InputError: If pieces have no length, or would not advance.
        """
        most = self.settings.max_length
        if most is None:
            raise InputError("the model takes texts of any length: leave out stride")
        room = most - self.tokenizer.num_special_tokens_to_add(False)
        if not 0 <= stride < room:
            raise InputError(f"stride is {stride}, it must be from 0 to {room - 1}: pieces are of {room} tokens")
        encoding = self._cutting_by(stride, most).encode(text)
        return [encoding, *encoding.overflowing]

    def arrays(self, encodings: Sequence[Encoding], names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """What networks take, (B, L) each, padded to the longest.

        Args:
            encodings: What became of texts.
            names: What the networks take, by name.

        Raises:
            RepositoryError: If they take something else than tokens, their types and a mask.
        """
        settings = self.settings
        shape = len(encodings), max(len(encoding.ids) for encoding in encodings)
        made = {
            "input_ids": np.full(shape, settings.pad_token_id, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            # Of a tokenizer that tells no types, all are 0.
            "token_type_ids": np.full(
                shape, settings.pad_token_type_id if "token_type_ids" in settings.inputs else 0, np.int64
            ),
        }
        if others := sorted(set(names) - made.keys()):
            raise RepositoryError(f"the networks take {others[0]}, which no tokenizer makes: call logits with arrays")
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            place = slice(shape[1] - length, None) if settings.padding_side == "left" else slice(length)
            made["input_ids"][row, place] = encoding.ids
            made["attention_mask"][row, place] = encoding.attention_mask
            if "token_type_ids" in settings.inputs:
                made["token_type_ids"][row, place] = encoding.type_ids
        return {name: made[name] for name in names}

    def _cutting_by(self, stride: int, most: int) -> Tokenizer:
        """A tokenizer that cuts: a setting of its own, since threads share the other."""
        with self._lock:
            if stride not in self._cutting:
                while len(self._cutting) >= _KEPT:
                    self._cutting.pop(next(iter(self._cutting)))
                made = copy.deepcopy(self.tokenizer)
                made.encode_special_tokens = self.settings.splits_special_tokens
                made.enable_truncation(most, stride=stride, direction=self.settings.truncation_side)
                self._cutting[stride] = made
            return self._cutting[stride]
