"""Lists of words with a label each, from a file to a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForTokenClassification, GPT2Tokenizer

from pwl_hf.data import DataError, DataSource, WordSplit, open_split
from pwl_hf.data.stream import RowStream
from tests.modeling.texts import bert_tokenizer

TAGS = ["O", "B-PER", "I-PER"]
WORDS = [["good", "goodly", "film"], ["a", "bad"], ["very", "badly", "good", "w1"]]
LABELS = [[0, 1, 2], [0, 1], [1, 2, 0, 0]]


def written(path: Path, words: Any = WORDS, labels: Any = LABELS, feature: Any = None) -> Path:
    feature = feature or datasets.List(datasets.ClassLabel(names=TAGS))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": feature})
    datasets.Dataset.from_dict({"tokens": words, "ner_tags": labels}, features=features).to_parquet(path)
    return path


def opened(path: Path, **options: Any) -> WordSplit:
    return open_split(DataSource(str(path), **options), "train", "words")


def test_a_label_stands_at_the_first_token_of_its_word(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path / "words")
    split = opened(written(tmp_path / "train.parquet"))
    assert (split.column, split.label_column, split.label_names, split.labels) == ("tokens", "ner_tags", TAGS, None)
    data = split.tokenized(tokenizer)
    # [CLS] good good ##ly film [SEP]
    assert data[0]["labels"] == [-100, 0, 1, -100, 2, -100]
    assert data[0]["input_ids"] == tokenizer("good goodly film")["input_ids"]
    assert data.lengths == [6, 4, 7]
    batch = data.collate([data[0], data[1]])
    expected = DataCollatorForTokenClassification(tokenizer)([data[0], data[1]])
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert batch["labels"].tolist()[1] == [-100, 0, 1, -100, -100, -100]
    assert batch["sample_ids"].tolist() == [0, 1]


def test_labels_are_renumbered_as_the_model_has_them(tmp_path: Path) -> None:
    split = opened(written(tmp_path / "train.parquet")).renumbered([2, 0, 1])
    assert split.tokenized(bert_tokenizer(tmp_path / "words"))[0]["labels"] == [-100, 2, 0, -100, 1, -100]


def test_strings_numbers_and_json_are_labels_too(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path / "words")
    strings = written(
        tmp_path / "s.parquet",
        labels=[["x", "y", "x"], ["x", "x"], ["y"] * 4],
        feature=datasets.List(datasets.Value("string")),
    )
    split = opened(strings)
    assert split.label_names == ["x", "y"]
    assert split.tokenized(tokenizer)[0]["labels"] == [-100, 0, 1, -100, 0, -100]
    (tmp_path / "train.jsonl").write_text('{"words": ["good", "film"], "tags": [1, 0]}\n{"words": [], "tags": []}\n')
    split = opened(tmp_path / "train.jsonl")
    assert (split.column, split.label_column, split.label_names) == ("words", "tags", ["0", "1"])
    assert [item["labels"] for item in split.tokenized(tokenizer).items] == [[-100, 1, 0, -100], [-100, -100]]


def test_streams_give_the_same_items(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path / "words")
    path = written(tmp_path / "train.parquet")
    streamed = opened(path, streaming=True).tokenized(tokenizer)
    assert isinstance(streamed, RowStream)
    whole = opened(path).tokenized(tokenizer)
    assert list(streamed) == whole.items
    (batch,) = DataLoader(streamed, 3, collate_fn=streamed.collate)
    assert batch["labels"].shape == (3, 7)


def test_words_beyond_the_limit_are_cut_with_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = opened(written(tmp_path / "train.parquet")).tokenized(bert_tokenizer(tmp_path / "words"), max_length=4)
    assert data[0]["labels"] == [-100, 0, 1, -100]
    assert "2 of 3 texts of split 'train'" in caplog.text


@pytest.mark.parametrize(
    ("words", "labels", "reason"),
    [
        (WORDS, [[0, 1, 2], [0], [1, 2, 0, 0]], "row 1 of .* has 2 words in 'tokens' and 1 labels in 'ner_tags'"),
        (WORDS, [[0, 1, 2], None, [1, 2, 0, 0]], "row 1 of .* has 2 words in 'tokens' and no labels"),
        (["good", None, "a"], LABELS, "row 1 of .* has no list of words in 'tokens', but None"),
        ([["good", None, "a"], *WORDS[1:]], LABELS, "row 0 of .* has no list of words"),
        (WORDS, [[0, 1, 2], [0, -1], [1, 2, 0, 0]], "row 1 of .* has the label -1, which is none of"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_number(tmp_path: Path, words: Any, labels: Any, reason: str) -> None:
    given = [[word] if isinstance(word, str) else word for word in words]
    if words[0] == "good":
        labels = [[0], [0, 1], [1]]
    path = written(tmp_path / "train.parquet", given, labels)
    with pytest.raises(DataError, match=reason):
        opened(path).tokenized(bert_tokenizer(tmp_path / "words"))


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"text_column 'ner_tags' of .* holds no lists of words"):
        opened(path, text_column="ner_tags")
    datasets.Dataset.from_dict({"text": ["good"], "label": [0]}).to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(DataError, match="no column known to hold lists of words"):
        opened(tmp_path / "plain.parquet")
    datasets.Dataset.from_dict({"tokens": [["good"]], "label": [0]}).to_parquet(tmp_path / "one.parquet")
    with pytest.raises(DataError, match=r"label_column 'label' of .* must hold lists of ClassLabels"):
        opened(tmp_path / "one.parquet", label_column="label")


def test_a_tokenizer_that_joins_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(
        '{"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "Ġb": 4, "<|endoftext|>": 5}', encoding="utf-8"
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\nĠ b\n", encoding="utf-8")
    split = opened(written(tmp_path / "train.parquet", [["a", "b"]], [[0, 1]]))
    made = {"pad_token": "<|endoftext|>"}
    with pytest.raises(DataError, match="save it with add_prefix_space=True"):
        split.tokenized(GPT2Tokenizer.from_pretrained(tmp_path, **made))
    apart = GPT2Tokenizer.from_pretrained(tmp_path, add_prefix_space=True, **made)
    assert split.tokenized(apart)[0]["labels"] == [0, 1]
    with pytest.raises(DataError, match="has no pad_token"):
        split.tokenized(GPT2Tokenizer.from_pretrained(tmp_path, add_prefix_space=True))
