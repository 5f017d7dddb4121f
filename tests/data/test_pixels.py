"""Items: right image, right label, right number, however they are fetched."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import default_data_collator

from pwl_hf.data import DataError, DataSource, open_split
from tests.data.pictures import numbers_of, picture, png, processor, table


@pytest.fixture
def split(tmp_path):
    table(range(10)).to_parquet(tmp_path / "train.parquet")
    return open_split(DataSource(str(tmp_path)), "train")


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_items_are_the_rows(split, keep_in_memory):
    items = split.pixels(processor(), keep_in_memory=keep_in_memory)
    assert len(items) == split.num_rows == 10
    for row in (0, 3, 9):
        item = items[row]
        assert set(item) == {"pixel_values", "labels", "sample_ids"}
        assert (item["pixel_values"].shape, item["pixel_values"].dtype) == ((3, 4, 4), torch.float32)
        assert numbers_of(item["pixel_values"]) == [row]
        assert (item["labels"], item["sample_ids"]) == (row % 3, row)
        assert type(item["labels"]) is type(item["sample_ids"]) is int
    with pytest.raises(IndexError):
        items[10]


@pytest.mark.parametrize("collate", [None, default_data_collator])
@pytest.mark.parametrize(("keep_in_memory", "workers"), [(False, 0), (False, 2), (True, 0)])
def test_loader_keeps_image_label_and_number_together(split, keep_in_memory, workers, collate):
    items = split.pixels(processor(), keep_in_memory=keep_in_memory)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(items, 4, shuffle=True, generator=order, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    ids = torch.cat([batch["sample_ids"] for batch in batches])
    assert ids.dtype == torch.int64
    assert sorted(ids.tolist()) == list(range(10)) != ids.tolist()
    assert numbers_of(torch.cat([batch["pixel_values"] for batch in batches])) == ids.tolist()
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), ids % 3)


def test_batch_is_processed_in_one_call(split):
    calls = []

    def counting(images, **options):
        calls.append(len(images))
        return processor()(images=images, **options)

    items = split.pixels(counting)
    assert next(iter(DataLoader(items, 8)))["labels"].shape == (8,)
    assert calls == [8]


def test_all_ways_give_the_same_tensors(split):
    lazy, kept = split.pixels(processor(5)), split.pixels(processor(5), keep_in_memory=True)
    together = torch.stack([item["pixel_values"] for item in lazy.__getitems__(range(10))])
    assert torch.equal(together, kept.inputs["pixel_values"])
    assert torch.equal(together, torch.stack([lazy[row]["pixel_values"] for row in range(10)]))


@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_dataset_survives_pickling(split, keep_in_memory):
    items = split.pixels(processor(), keep_in_memory=keep_in_memory)
    copy = pickle.loads(pickle.dumps(items))
    assert torch.equal(copy[3]["pixel_values"], items[3]["pixel_values"])
    assert copy[3]["labels"] == items[3]["labels"]


def test_every_mode_becomes_rgb(tmp_path):
    colour = picture(200, side=4)
    modes = ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"]
    for place, mode in enumerate(modes):
        shown = colour.convert("L").convert(mode) if mode == "LA" else colour.convert(mode)
        shown.save(tmp_path / f"{place}.{'jpg' if mode == 'CMYK' else 'png'}")
    items = open_split(DataSource(str(tmp_path)), "train").pixels(processor())
    assert len(items) == len(modes)
    for place, mode in enumerate(modes):
        file = next(tmp_path.glob(f"{place}.*"))
        with Image.open(file) as image:
            assert image.mode == mode
            expected = processor()(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(items[place]["pixel_values"], expected)


def test_image_on_its_side_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "0.png", exif=exif)
    item = open_split(DataSource(str(tmp_path)), "train").pixels(
        processor().__class__(size={"height": 4, "width": 2}, do_normalize=False)
    )[0]
    assert item["pixel_values"][0].argmax().item() == 1


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"bytes": png(3)[:50], "path": None}, "cannot be read: OSError"),
        ({"bytes": b"no image", "path": None}, "cannot be read: UnidentifiedImageError"),
        ({"bytes": b"", "path": None}, "cannot be read: UnidentifiedImageError"),
        ({"bytes": None, "path": "/nowhere/3.png"}, "cannot be read: FileNotFoundError"),
        (None, "has no image"),
    ],
)
@pytest.mark.parametrize("keep_in_memory", [False, True])
def test_image_that_cannot_be_read_is_named_by_split_and_row(tmp_path, broken, reason, keep_in_memory):
    rows = [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}, broken, {"bytes": png(3), "path": None}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "train.parquet")
    split = open_split(DataSource(str(tmp_path)), "train[1:]")
    with pytest.raises(DataError, match=rf"row 1 of split 'train\[1:\]' of .*{reason}"):
        next(iter(DataLoader(split.pixels(processor(), keep_in_memory=keep_in_memory), 3)))


def test_shuffle_buffer_is_for_streams(split):
    with pytest.raises(DataError, match="is no stream: let the loader shuffle it"):
        split.pixels(processor(), shuffle_buffer=10)
