"""Tokenizers of a few words, and networks that read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import BertTokenizer

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "very", "##ly")


def bert_tokenizer(folder: Path, words: Sequence[str] = WORDS, **options: object) -> BertTokenizer:
    """A tokenizer of 50 words, of which some are given."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*words, *(f"w{i}" for i in range(50 - len(words)))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    return BertTokenizer.from_pretrained(folder, model_max_length=32, **options)
