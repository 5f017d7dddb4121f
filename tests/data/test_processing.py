"""One way from an image to a tensor: upright, with the network's channels, as in transformers' pipelines."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import (
    CLIPConfig,
    PreTrainedConfig,
    Siglip2ImageProcessorPil,
    TextNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
)
from transformers.image_utils import load_image

from pwl_hf.data import DataError, DataSource, open_split
from pwl_hf.data.processing import channels_of, to_tensor, upright
from tests.data.odd_pictures import ODD, noise, turned

GREY = {"size": {"height": 8, "width": 8}, "image_mean": [0.5], "image_std": [0.5]}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images_are_what_transformers_pipelines_make_of_them(name, tmp_path):
    encoded = ODD[name]()
    expected = load_image(Image.open(io.BytesIO(encoded)))
    found = upright(Image.open(io.BytesIO(encoded)))
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(expected))
    # The same by way of a data set, as training and evaluating read it.
    features = Features({"image": ImageFeature()})
    columns = {"image": [{"bytes": encoded, "path": None}]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    items = open_split(DataSource(str(tmp_path / "train.parquet")), "train").pixels(processor)
    assert torch.equal(items[0]["pixel_values"], processor(expected, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_grey_images_are_the_grey_of_what_networks_of_three_channels_get(name):
    encoded = ODD[name]()
    found = upright(Image.open(io.BytesIO(encoded)), 1)
    assert found.mode == "L"
    assert np.array_equal(np.asarray(found), np.asarray(load_image(Image.open(io.BytesIO(encoded))).convert("L")))


def test_grey_pixels_stay_what_they_are():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(upright(Image.fromarray(pixels), 1)), pixels)


def test_transparency_is_kept_for_networks_that_take_it():
    image = noise("RGBA")
    assert np.array_equal(np.asarray(upright(image, 4)), np.asarray(image))
    assert upright(noise("RGB"), 4).getpixel((0, 0))[3] == 255


def test_callers_image_stays_as_it_was():
    image = Image.open(io.BytesIO(turned(6)))
    upright(image, 1)
    assert (image.mode, image.size, image.getexif()[0x0112]) == ("RGB", (24, 16), 6)


@pytest.mark.parametrize("num_channels", [0, 2, 5])
def test_channels_that_no_image_has_are_refused(num_channels, tmp_path):
    with pytest.raises(ValueError, match=rf"takes images of {num_channels} channels .*1 \(L\), 3 \(RGB\), 4 \(RGBA\)"):
        upright(noise("RGB"), num_channels)
    with pytest.raises(ValueError, match=f"takes images of {num_channels} channels"):
        open_split(DataSource("digits"), "test").pixels(ViTImageProcessorPil(**GREY), num_channels=num_channels)


@pytest.mark.parametrize("settings", [{}, {"do_convert_rgb": True, "do_normalize": False}])
def test_processor_of_other_channels_is_named(settings):
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, **settings)
    with pytest.raises(ValueError, match=r"ViTImageProcessorPil.* cannot prepare images of 1 channel.*do_convert_rgb"):
        to_tensor([noise("L")], processor, 1)


PATCHES = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)


def test_processor_that_makes_patches_is_named_where_whole_images_are_needed():
    with pytest.raises(
        ValueError, match=r"\(Siglip2ImageProcessorPil\) makes pixel_values, pixel_attention_mask, spat"
    ):
        to_tensor([Image.new("RGB", (8, 8))], PATCHES)


@pytest.mark.parametrize("options", [{}, {"keep_in_memory": True}])
def test_data_sets_give_networks_of_patches_all_that_they_take(options):
    split = open_split(DataSource("digits", max_samples=4), "test")
    items = split.pixels(PATCHES, **options)
    images = [upright(image) for image in split.data.cast_column("image", ImageFeature())["image"]]
    expected = PATCHES(images=images, return_tensors="pt")
    assert items[0].keys() == {*expected, "labels", "sample_ids"}
    for name, values in expected.items():
        assert torch.equal(torch.stack([items[row][name] for row in range(4)]), values)
    with pytest.raises(ValueError, match="cannot prepare images of 1 channel"):
        split.pixels(PATCHES, num_channels=1, **options)[0]


@pytest.mark.parametrize("options", [{}, {"keep_in_memory": True}])
def test_data_sets_give_networks_of_one_channel_one(options):
    split = open_split(DataSource("digits", max_samples=4), "test")
    items = split.pixels(ViTImageProcessorPil(**GREY), num_channels=1, **options)
    assert [items[row]["pixel_values"].shape for row in range(4)] == [(1, 8, 8)] * 4
    rgb = split.pixels(ViTImageProcessorPil(size={"height": 8, "width": 8}), **options)
    assert torch.equal(items[0]["pixel_values"][0], rgb[0]["pixel_values"][2])


def test_streams_give_networks_of_one_channel_one(tmp_path):
    features = Features({"image": ImageFeature()})
    columns = {"image": [{"bytes": turned(6), "path": None}] * 3}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    split = open_split(DataSource(str(tmp_path / "train.parquet"), streaming=True), "train")
    items = list(split.pixels(ViTImageProcessorPil(**GREY), num_channels=1))
    assert [item["pixel_values"].shape for item in items] == [(1, 8, 8)] * 3


def test_image_that_cannot_be_read_is_named_by_its_row(tmp_path):
    features = Features({"image": ImageFeature()})
    columns = {"image": [{"bytes": turned(6), "path": None}, {"bytes": turned(6)[:200], "path": None}]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    items = open_split(DataSource(str(tmp_path / "train.parquet")), "train").pixels(ViTImageProcessorPil(**GREY))
    with pytest.raises(DataError, match="row 1"):
        items[1]


def test_channels_are_the_config_s_and_three_if_it_has_no_such_field():
    assert channels_of(ViTConfig(num_channels=1)) == 1
    assert channels_of(CLIPConfig(vision_config={"num_channels": 1})) == 1
    assert channels_of(TextNetConfig(stem_num_channels=1)) == 1
    assert channels_of(PreTrainedConfig()) == 3
