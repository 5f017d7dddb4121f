"""From the logits of tokens to entities, as transformers' token-classification pipeline makes them.

Notation: L tokens of K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

STRATEGIES = ("none", "simple", "first", "average", "max")
# The label of what is no entity.
OUTSIDE = ("O",)


class Entity(TypedDict, total=False):
    """A token (`entity`, `index`), or several of one kind (`entity_group`), and where they stand in the text."""

    entity: str
    entity_group: str
    score: float
    index: int
    word: str
    start: int
    end: int


@dataclass(frozen=True)
class _Token:
    """A token that is none of the tokenizer's own."""

    word: str
    scores: NDArray[np.floating]
    start: int
    end: int
    index: int
    is_subword: bool


def entities_of(
    text: str,
    pieces: Sequence[tuple[Encoding, NDArray[np.floating]]],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    *,
    unk_token_id: int | None = None,
    aggregation_strategy: str = "none",
    ignore_labels: Collection[str] = OUTSIDE,
) -> list[Entity]:
    """The entities of a text.

    Args:
        text: The text.
        pieces: What became of it, and the logits (L, K), in one piece or several.
        labels: The name of each class.
        tokenizer: What made tokens of it.
        unk_token_id: The token of what is in no vocabulary.
        aggregation_strategy: One of `STRATEGIES`: `none` gives tokens, `simple` joins what is of one kind, the others
            first agree on a label for each word.
        ignore_labels: Labels that are left out.

    Returns:
        In the order of the text.

    Raises:
        ValueError: If scores are NaN.
    """
    joined = _joined_by(tokenizer)
    found: list[Entity] = []
    for encoding, logits in pieces:
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = shifted / shifted.sum(axis=-1, keepdims=True)
        if np.isnan(scores).any():
            raise ValueError("the logits make scores of NaN: the network's weights may not be finite")
        tokens = list(_tokens(text, encoding, scores, tokenizer, unk_token_id))
        entities = _entities(tokens, labels, aggregation_strategy, joined)
        if aggregation_strategy != "none":
            entities = _groups(entities, joined)
        found += [
            e for e in entities if e.get("entity") not in ignore_labels and e.get("entity_group") not in ignore_labels
        ]
    return _without_overlaps(found) if len(pieces) > 1 else found


def _joined_by(tokenizer: Tokenizer) -> Callable[[list[str]], str]:
    decoder = tokenizer.decoder
    return " ".join if decoder is None else decoder.decode


def _tokens(
    text: str, encoding: Encoding, scores: NDArray[np.floating], tokenizer: Tokenizer, unk_token_id: int | None
) -> Any:
    marks_words = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
    for index, (token, word) in enumerate(zip(encoding.ids, encoding.tokens, strict=True)):
        if encoding.special_tokens_mask[index]:
            continue
        start, end = encoding.offsets[index]
        there = text[start:end]
        # Where no prefix marks it, a blank before it tells.
        is_subword = len(word) != len(there) if marks_words else start > 0 and " " not in text[start - 1 : start + 1]
        if token == unk_token_id:
            word, is_subword = there, False
        yield _Token(word, scores[index], start, end, index, is_subword)


def _entities(
    tokens: Sequence[_Token], labels: Sequence[str], strategy: str, joined: Callable[[list[str]], str]
) -> list[Entity]:
    """Of each token, or of each word where they agree on one."""
    if strategy in ("none", "simple"):
        return [
            Entity(
                entity=labels[(best := int(token.scores.argmax()))],
                score=token.scores[best].item(),
                index=token.index,
                word=token.word,
                start=token.start,
                end=token.end,
            )
            for token in tokens
        ]
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.is_subword:
            words[-1].append(token)
        else:
            words.append([token])
    return [_word(word, labels, strategy, joined) for word in words]


def _word(word: Sequence[_Token], labels: Sequence[str], strategy: str, joined: Callable[[list[str]], str]) -> Entity:
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: token.scores.max()).scores
    else:
        scores = np.stack([token.scores for token in word]).mean(axis=0)
    best = int(scores.argmax())
    return Entity(
        entity=labels[best],
        score=scores[best].item(),
        word=joined([token.word for token in word]),
        start=word[0].start,
        end=word[-1].end,
    )


def _groups(entities: Sequence[Entity], joined: Callable[[list[str]], str]) -> list[Entity]:
    """Neighbours of one kind as one; a `B-` begins another."""
    groups: list[list[Entity]] = []
    for entity in entities:
        begins, kind = _kind(entity["entity"])
        if groups and not begins and kind == _kind(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        Entity(
            entity_group=group[0]["entity"].split("-", 1)[-1],
            score=float(np.mean([entity["score"] for entity in group])),
            word=joined([entity["word"] for entity in group]),
            start=group[0]["start"],
            end=group[-1]["end"],
        )
        for group in groups
    ]


def _kind(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities that two pieces of a text share, the longer, or the surer."""
    found: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not found or not found[-1]["start"] <= entity["start"] < found[-1]["end"]:
            found.append(entity)
            continue
        own, other = (e["end"] - e["start"] for e in (entity, found[-1]))
        if own > other or (own == other and entity["score"] > found[-1]["score"]):
            found[-1] = entity
    return found
