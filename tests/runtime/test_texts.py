"""Tokens without transformers: those of its tokenizers, for any text, of any kind and setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from pwl_hf import PWLConfig, RepositoryError, SaveError
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.exporting.tokenizing import tokenization_of
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.runtime.texts import Texting
from tests.modeling.types import network_config
from tests.task_models import TOKENIZERS, tokenizer_of

NAMES = ("input_ids", "attention_mask", "token_type_ids")


class Both(NamedTuple):
    own: Texting
    theirs: PreTrainedTokenizerBase


def config() -> PWLConfig:
    networks = {f"{role}_config": network_config("bert", role) for role in ("teacher", "student")}
    return PWLConfig(**networks, num_blocks=3)


def opened(folder: Path) -> Both:
    repository = Repository.open(folder)
    content = (folder / "tokenizer.json").read_bytes()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return Both(Texting(content, tokenization_of(repository, config()), str(repository)), theirs)


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """A tokenizer of ours and transformers' of the same files."""

    @cache
    def of(kind: str) -> Both:
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer_of(kind, folder / "made").save_pretrained(folder)
        config().save_pretrained(folder)
        return opened(folder)

    return of


# Characters of all kinds, and pieces that tokenizers know.
PIECES = st.sampled_from(
    [
        "good",
        "film",
        "Film noir",
        "<tag>",
        "[EXTRA]",
        "[SEP]",
        "</s>",
        "<mask>",
        "w11",
        "##ly",
        " ",
        "  ",
        "\n",
        "É",
        "é",
    ]
)
WORDS = st.lists(st.one_of(PIECES, st.text(max_size=6)), max_size=12).map("".join)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.one_of(WORDS, st.tuples(WORDS, WORDS)), min_size=1, max_size=3))
def test_tokens_are_those_of_transformers(both: Callable[[str], Both], kind: str, texts: list[Any]) -> None:
    own, theirs = both(kind)
    texts = [text for text in texts if theirs(*([text] if isinstance(text, str) else text))["input_ids"]]
    given_to_us = [t if isinstance(t, str) else {"text": t[0], "text_pair": t[1]} for t in texts]
    for text, ours in zip(texts, given_to_us, strict=True):
        pair = (text,) if isinstance(text, str) else text
        expected = theirs(*pair, truncation=True, return_tensors="np", return_token_type_ids=True)
        found = own.arrays(own.encodings(ours, truncation=True), NAMES)
        for name in NAMES:
            if name != "token_type_ids" or name in theirs.model_input_names:
                assert np.array_equal(found[name], expected[name]), (name, text)
    single = [text if isinstance(text, str) else text[0] for text in texts]
    single = [text for text in single if theirs(text)["input_ids"]]
    if single:
        expected = theirs(single, truncation=True, padding=True, return_tensors="np")
        found = own.arrays(own.encodings(single, truncation=True), NAMES[:2])
        assert all(np.array_equal(found[name], expected[name]) for name in NAMES[:2]), single


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("stride", [0, 3, 9])
def test_pieces_of_a_long_text_are_those_of_transformers(both: Callable[[str], Both], kind: str, stride: int) -> None:
    own, theirs = both(kind)
    text = "a good film, " * 30
    expected = theirs(text, truncation=True, stride=stride, return_overflowing_tokens=True, padding=True)
    found = own.arrays(own.pieces(text, stride), NAMES[:2])
    assert len(found["input_ids"]) > 2
    for name in NAMES[:2]:
        assert found[name].tolist() == expected[name]
    with pytest.raises(InputError, match=r"stride is \d+, it must be from 0 to"):
        own.pieces(text, 32)


def test_cutting_for_one_call_cuts_no_other(both: Callable[[str], Both]) -> None:
    own, _ = both("wordpiece")
    assert len(own.encodings("good " * 50, truncation=True)[0].ids) == 32
    assert len(own.encodings("good " * 20)[0].ids) == 22
    with pytest.raises(InputError, match=r"text 1 has 52 tokens, and the model takes 32: .*truncation=True"):
        own.encodings(["good", "good " * 50])


def test_tokenizers_at_left_pad_there(both: Callable[[str], Both]) -> None:
    own, theirs = both("llama")
    assert theirs.padding_side == own.settings.padding_side == "left"
    made = own.arrays(own.encodings(["a good film", "a"]), NAMES)
    assert made["attention_mask"][1].tolist() == [0] * (made["attention_mask"].shape[1] - 2) + [1, 1]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there are no texts"),
        (5, "texts must be strings"),
        (b"bytes", "texts must be strings"),
        (["good", None], "text 1 must be a string"),
        ([["good", "bad"]], "text 0 must be a string, or have 'text' and 'text_pair'"),
        ({"text": "good", "pair": "bad"}, "the text must be a string"),
        ({"text": "good", "text_pair": 5}, "the text must be a string"),
        (["good", "half \ud83d"], "text 1 holds half of a character at 5"),
    ],
)
def test_what_is_no_text_is_named(both: Callable[[str], Both], texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        both("wordpiece").own.encodings(texts)


def test_a_text_without_tokens_is_refused(both: Callable[[str], Both]) -> None:
    own, theirs = both("llama")
    if not theirs("")["input_ids"]:
        with pytest.raises(InputError, match="the text has no tokens"):
            own.encodings("")


def test_a_tokenizer_json_that_transformers_reads_otherwise_is_not_exported(tmp_path: Path) -> None:
    tokenizer_of("wordpiece", tmp_path / "made").save_pretrained(tmp_path)
    config().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    # BertTokenizer makes its normaliser of tokenizer_config.json, and knows nothing of this one.
    content["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SaveError, match=r"tokenizer\.json of .* makes .*BertTokenizer.*save_pretrained, and export"):
        opened(tmp_path)


def test_a_tokenizer_json_of_later_is_refused(both: Callable[[str], Both]) -> None:
    own, _ = both("wordpiece")
    with pytest.raises(RepositoryError, match="not the one that the graphs were exported with"):
        Texting(b"{}", own.settings, "here")


def test_without_tokenizer_json_there_is_none(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    assert tokenization_of(Repository.open(tmp_path), config()) is None
