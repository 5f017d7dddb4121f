"""Streams: every row once and with its own number, whoever reads it."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader

from pwl_hf.data import DataError, DataSource, open_split
from pwl_hf.data.stream import FILE_STRIDE
from tests.data.pictures import numbers_of, plain_parquet, png, processor, table

# Three files of 40, 35 and 5 rows: the chunks of 32 do not divide them.
FILES = (range(40), range(100, 135), range(200, 205))


@pytest.fixture
def source(tmp_path):
    for place, rows in enumerate(FILES):
        table(rows).to_parquet(tmp_path / f"part-{place}.parquet")
    return DataSource(str(tmp_path / "*.parquet"), streaming=True)


def read(items, workers: int = 0) -> list[tuple[int, int, int]]:
    """Number, picture and label of each row, in the order in which it comes."""
    found = []
    for batch in DataLoader(items, 8, num_workers=workers):
        rows = batch["sample_ids"].tolist(), numbers_of(batch["pixel_values"]), batch["labels"].tolist()
        found += list(zip(*rows, strict=True))
    return found


def expected(files=FILES) -> list[tuple[int, int, int]]:
    return [
        (place * FILE_STRIDE + row, number, number % 3)
        for place, rows in enumerate(files)
        for row, number in enumerate(rows)
    ]


def test_rows_come_in_their_order_and_again(source):
    items = open_split(source, "train").pixels(processor())
    assert read(items) == expected()
    assert read(items) == expected()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_share_the_rows_and_agree_on_their_numbers(source, workers):
    found = read(open_split(source, "train").pixels(processor()), workers)
    assert Counter(found) == Counter(expected())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_one_file_is_read_by_all_workers(tmp_path):
    table(FILES[0]).to_parquet(tmp_path / "train.parquet")
    items = open_split(DataSource(str(tmp_path), streaming=True), "train").pixels(processor())
    found = [batch["sample_ids"].tolist() for batch in DataLoader(items, 8, num_workers=2)]
    # With one file a number is the row's in the split.
    assert sorted(number for numbers in found for number in numbers) == list(range(40))
    assert {frozenset(number % 2 for number in numbers) for numbers in found} == {frozenset({0}), frozenset({1})}


def test_processes_of_accelerate_share_the_rows_and_agree_on_their_numbers(source):
    items = open_split(source, "train").pixels(processor())
    parts = [
        list(IterableDatasetShard(items, batch_size=10, num_processes=2, process_index=index)) for index in range(2)
    ]
    numbers = Counter(item["sample_ids"] for part in parts for item in part)
    assert numbers == Counter(number for number, _, _ in expected())
    assert [item["sample_ids"] for item in parts[1][:10]] == list(range(10, 20))


def test_samples_are_the_first_of_every_file(source, tmp_path):
    items = open_split(DataSource(source.name, streaming=True, max_samples=8), "train").pixels(processor())
    wanted = expected((range(3), range(100, 103), range(200, 202)))
    assert read(items) == wanted
    assert Counter(read(items, 2)) == Counter(wanted)


def test_shuffling_keeps_numbers_and_changes_with_seed_and_epoch(source):
    split = open_split(source, "train")
    items = split.pixels(processor(), shuffle_buffer=16, seed=1)
    first = read(items)
    assert Counter(first) == Counter(expected())
    assert first != expected()
    assert read(items) == first
    assert read(split.pixels(processor(), shuffle_buffer=16, seed=2)) != first
    items.set_epoch(1)
    second = read(items)
    assert second != first
    assert Counter(second) == Counter(expected())
    # A greater buffer than rows.
    assert Counter(read(split.pixels(processor(), shuffle_buffer=1000))) == Counter(expected())


def test_shuffled_rows_under_workers_come_once(source):
    items = open_split(source, "train").pixels(processor(), shuffle_buffer=16)
    assert Counter(read(items, 2)) == Counter(expected())


def test_numbers_are_whole_in_a_batch(source):
    (batch,) = DataLoader(open_split(source, "train").pixels(processor()), 80)
    assert batch["sample_ids"].dtype == torch.int64
    assert batch["sample_ids"].max() == 2 * FILE_STRIDE + 4


def test_stream_without_features_finds_its_columns(tmp_path):
    path = plain_parquet(tmp_path / "train.parquet", range(5), [0, 1, 2, 0, 1])
    split = open_split(DataSource(str(path), streaming=True), "train")
    assert split.label_names is None
    assert read(split.pixels(processor())) == expected([range(5)])
    strings = plain_parquet(tmp_path / "test.parquet", range(3), ["b", "a", "b"])
    with pytest.raises(DataError, match="a stream does not tell all: give label_names"):
        open_split(DataSource(str(strings), streaming=True), "test")
    split = open_split(DataSource(str(strings), streaming=True, label_names=["a", "b"]), "test")
    assert [item["labels"] for item in split.pixels(processor())] == [1, 0, 1]


def test_folder_of_images_streams_with_its_labels(tmp_path):
    for name, number in (("owl", 1), ("cat", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{number}.png").write_bytes(png(number))
    split = open_split(DataSource(str(tmp_path), streaming=True), "train")
    assert split.label_names == ["cat", "owl"]
    assert sorted((picture, label) for _, picture, label in read(split.pixels(processor()))) == [(1, 1), (2, 0)]


def test_bad_rows_are_named_when_they_come(tmp_path):
    path = plain_parquet(tmp_path / "train.parquet", range(4), [0, 1, 2, -1])
    items = open_split(DataSource(str(path), streaming=True), "train").pixels(processor())
    with pytest.raises(DataError, match=r"row 3 of split 'train' of .* has the label -1"):
        list(items)


def test_image_that_cannot_be_read_is_named_when_it_comes(tmp_path):
    path = plain_parquet(tmp_path / "train.parquet", range(40), list(range(40)))
    rows = pq.read_table(path).to_pylist()
    rows[35]["image"]["bytes"] = rows[35]["image"]["bytes"][:50]
    pq.write_table(pa.Table.from_pylist(rows), path)
    items = iter(open_split(DataSource(str(path), streaming=True), "train").pixels(processor()))
    assert [next(items)["sample_ids"] for _ in range(32)] == list(range(32))
    with pytest.raises(DataError, match=r"the image in row 35 of split 'train' of .* cannot be read: OSError"):
        list(items)


def test_stream_is_not_kept_in_memory(source):
    with pytest.raises(DataError, match="is a stream, and is not kept in memory"):
        open_split(source, "train").pixels(processor(), keep_in_memory=True)
