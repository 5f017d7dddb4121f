"""Pixels are those of transformers' image processors, bit for bit, and what is not supported is refused by name."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor

from pwl_hf.data.processing import process, upright
from pwl_hf.runtime.images import is_one
from pwl_hf.runtime.preprocessing import Preprocessing
from pwl_hf.runtime.processor_config import _COMMON, TYPES
from tests.data.odd_pictures import ODD, noise, palette, turned

TINY = {"image_processor_type": "ViTImageProcessor", "size": {"height": 7, "width": 9}}
RGBA_SIZED = {**TINY, "image_mean": [0.5] * 4, "image_std": [0.25] * 4}
GREY = {**TINY, "image_mean": [0.4], "image_std": [0.2]}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """What `AutoImageProcessor` makes of a `preprocessor_config.json`."""
    folder = tmp_path_factory.mktemp("processor")

    def load(config: dict[str, Any]) -> BaseImageProcessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        return AutoImageProcessor.from_pretrained(folder, backend="pil")

    return load


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def assert_same(found: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected).astype(np.float32)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


def made_by(processor: BaseImageProcessor, images: list[Image.Image], num_channels: int = 3) -> np.ndarray:
    return process([upright(image, num_channels) for image in images], processor, num_channels)["pixel_values"].numpy()


SIZES = [(30, 40), (40, 30), (16, 16), (7, 61), (224, 224), (300, 260)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TYPES)
def test_defaults_of_each_type_give_its_pixels(name, size, reference):
    config = {"image_processor_type": name}
    image = random_image(*size)
    assert_same(Preprocessing.of(config)(image), made_by(reference(config), [image]))


@pytest.mark.parametrize("name", TYPES)
def test_defaults_are_those_of_transformers(name):
    processor = getattr(transformers, f"{name}Pil")
    for field, value in {**_COMMON, **TYPES[name]}.items():
        assert getattr(processor, field, None) == value, field
    known = {*processor.valid_kwargs.__annotations__} - {
        *transformers.ViTImageProcessorPil.valid_kwargs.__annotations__
    }
    assert {*TYPES[name]} - {*_COMMON} == known - {"do_reduce_labels"}


# A file of each kind in the wild, and of what each type does in a way of its own.
FILES: dict[str, dict[str, Any]] = {
    "ViT of old": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 24,
    },
    "DeiT of old": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "do_center_crop": True,
        "crop_size": 20,
        "resample": 3,
        "size": 28,
    },
    "ResNet of old": {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "crop_pct": 0.875,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 28,
    },
    "BEiT of old": {
        "feature_extractor_type": "BeitFeatureExtractor",
        "reduce_labels": True,
        "size": 24,
        "crop_size": 16,
        "do_center_crop": True,
    },
    "written by fast processors": {
        "_valid_processor_keys": ["images", "size"],
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": True,
        "device": None,
        "disable_grouping": None,
        "do_center_crop": None,
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pad": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "ViTImageProcessorFast",
        "image_seq_length": None,
        "image_std": [0.5, 0.5, 0.5],
        "input_data_format": None,
        "pad_size": None,
        "processor_class": None,
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "return_tensors": None,
        "size": {"height": 24, "width": 20},
    },
    "DINOv2": {
        "crop_size": {"height": 20, "width": 24},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "size": {"shortest_edge": 28},
    },
    "a class of Pillow": {**TINY, "image_processor_type": "ViTImageProcessorPil"},
    "both names": {**TINY, "feature_extractor_type": "ConvNextFeatureExtractor"},
    "ConvNeXt just below 384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 383}},
    "ConvNeXt at 384": {"image_processor_type": "ConvNextImageProcessor", "size": 384},
    "ConvNeXt cropped twice": {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 30, "longest_edge": 31},
        "crop_pct": 0.7,
        "do_center_crop": True,
        "crop_size": [20, 33],
    },
    "ConvNeXt of more than all": {"image_processor_type": "ConvNextImageProcessor", "size": 20, "crop_pct": 1.3},
    "LeViT stretched": {"image_processor_type": "LevitImageProcessor", "size": [20, 30], "crop_size": 15},
    "LeViT of another size": {"image_processor_type": "LevitImageProcessor", "size": 31, "crop_size": 33},
    "PoolFormer of a square": {"image_processor_type": "PoolFormerImageProcessor", "size": [20, 20], "crop_size": 20},
    "PoolFormer of a rectangle": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": [20, 25],
        "crop_size": 20,
    },
    "PoolFormer of all": {"image_processor_type": "PoolFormerImageProcessor", "size": 20, "crop_pct": None},
    "EfficientNet": {"image_processor_type": "EfficientNetImageProcessor", "size": 20, "rescale_offset": True},
    "EfficientNet, once": {"image_processor_type": "EfficientNetImageProcessor", "size": 20, "include_top": False},
    "EfficientNet, top alone": {"image_processor_type": "EfficientNetImageProcessor", "size": 9, "do_normalize": False},
    "SigLIP of a shortest edge": {"image_processor_type": "SiglipImageProcessor", "size": 20},
    "no square": {**TINY, "size": 20, "default_to_square": False},
    "null is no square": {**TINY, "size": 20, "default_to_square": None},
    "shortest and longest": {**TINY, "size": {"shortest_edge": 20, "longest_edge": 33}},
    "at most": {**TINY, "size": {"max_height": 31, "max_width": 22}},
    "null is off": {**TINY, "do_rescale": None, "do_normalize": None},
    "of bytes": {**TINY, "do_rescale": False, "do_normalize": False},
    "normalised alone": {**TINY, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60, 50, 40.5]},
    "rescaled alone": {**TINY, "do_normalize": False, "rescale_factor": 1 / 127.5},
    "cropped alone": {**TINY, "do_resize": False, "do_center_crop": True, "crop_size": [33, 21]},
    "not resized": {**TINY, "do_resize": False},
    "one number for all": {**TINY, "image_mean": 0.3, "image_std": 2},
    **{f"filter {number}": {**TINY, "resample": number} for number in range(6)},
}


@pytest.mark.parametrize("name", FILES)
def test_files_give_the_pixels_that_they_give_in_transformers(name, reference):
    processor, ours = reference(FILES[name]), Preprocessing.of(FILES[name])
    for size in [(30, 40), (41, 23), (20, 20), (13, 90)]:
        images = [random_image(*size, seed) for seed in range(2)]
        assert_same(ours(images), made_by(processor, images))


@pytest.mark.parametrize("name", TYPES)
def test_what_transformers_saves_is_read(name, reference):
    saved = reference({"image_processor_type": name}).to_dict()
    image = random_image(50, 70)
    assert_same(Preprocessing.of(json.loads(json.dumps(saved)))(image), made_by(reference(saved), [image]))


@pytest.mark.parametrize(("config", "num_channels"), [(TINY, 3), (GREY, 1), (RGBA_SIZED, 4)])
@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images_of_every_kind_are_read_as_in_training(name, config, num_channels, reference, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(ODD[name]())
    with Image.open(path) as image:
        expected = made_by(reference(config), [image], num_channels)
        ours = Preprocessing.of(config, num_channels)
        for given_as in (path, str(path), image, [path]):
            assert_same(ours(given_as), expected)


@pytest.mark.parametrize("encoded", [palette(3), palette(bytes(range(0, 160, 10))), ODD["grey"](), turned(6, "PNG")])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparency_lies_over_white_where_the_processor_says_rgb(encoded, reference):
    config = {**TINY, "do_convert_rgb": True}
    images = [Image.open(io.BytesIO(encoded)), noise("RGB")]
    images[1].info["transparency"] = images[1].getpixel((0, 0))
    assert_same(Preprocessing.of(config)(images[1]), made_by(reference(config), images[1:]))
    assert_same(Preprocessing.of(config)(images), made_by(reference(config), images))


@pytest.mark.parametrize("mode", ["1", "L", "P", "I", "F", "I;16", "LA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"])
def test_images_of_every_mode_are_read_as_in_training(mode, reference):
    image = Image.new(mode, (12, 8), 1 if mode in ("1", "I", "F", "I;16") else None)
    image.paste(Image.new(mode, (5, 3)), (2, 2))
    for config in (TINY, {**TINY, "do_convert_rgb": True}):
        assert_same(Preprocessing.of(config)(image), made_by(reference(config), [image]))


EDGES = st.integers(1, 60)


@st.composite
def configs(draw) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(TYPES)))
    size = {"shortest_edge": draw(EDGES)}
    if not name.startswith("ConvNext") and draw(st.booleans()):
        size = {"height": draw(EDGES), "width": draw(EDGES)}
    config = {"image_processor_type": name, "size": size, "resample": draw(st.integers(0, 5))}
    for switch in ("do_center_crop", "do_rescale", "do_normalize"):
        config[switch] = draw(st.booleans())
    config["crop_size"] = [draw(EDGES), draw(EDGES)]
    config["image_mean"] = draw(st.lists(st.floats(-2, 200), min_size=3, max_size=3))
    config["image_std"] = draw(st.lists(st.floats(0.01, 200), min_size=3, max_size=3))
    config["rescale_factor"] = draw(st.sampled_from([1 / 255, 1 / 127.5, 1, 2]))
    if "crop_pct" in TYPES[name]:
        config["crop_pct"] = draw(st.floats(0.3, 1.0))
    return config


@settings(max_examples=120, deadline=None)
@given(
    config=configs(),
    height=EDGES,
    width=EDGES,
    mode=st.sampled_from(["L", "RGB", "RGBA", "CMYK", "1"]),
    seed=st.integers(0, 9),
)
def test_any_settings_and_sizes_give_the_pixels_of_transformers(reference, config, height, width, mode, seed):
    # Long strips of images take long, and say no more.
    assume(config["size"].get("shortest_edge", 0) * max(height / width, width / height) <= 2000)
    image = random_image(height, width, seed).convert(mode)
    assert_same(Preprocessing.of(config)(image), made_by(reference(config), [image]))


def pixels(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


FRACTIONS = pixels(3, 9, 11) / 255
ARRAYS = {
    "channels first": pixels(3, 9, 11),
    "channels last": pixels(9, 11, 3),
    "either, so channels first": pixels(3, 5, 3),
    "a batch, channels first": pixels(2, 3, 9, 11),
    "a batch, channels last": pixels(2, 9, 11, 3),
    "several": [pixels(3, 9, 11), pixels(12, 8, 3)],
    "fractions": FRACTIONS,
    "fractions float32": FRACTIONS.astype(np.float32),
    "fractions float16": FRACTIONS.astype(np.float16),
    "zeros and ones": (FRACTIONS > 0.5).astype(float),
    "whole float64": pixels(3, 9, 11, dtype=np.float64),
    "almost whole": np.nextafter(pixels(3, 9, 11, dtype=np.float32).clip(0, 254), 255),
    "int64": pixels(3, 9, 11, dtype=np.int64),
    "uint16": pixels(3, 9, 11, dtype=np.uint16),
    "big-endian": pixels(3, 9, 11, dtype=">i2"),
    "not contiguous": pixels(9, 11, 6)[::-1, :, ::2],
}


@pytest.mark.parametrize("change", [{}, {"do_resize": False}, {"do_convert_rgb": True}, {"do_rescale": False}])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_taken_as_transformers_takes_them(name, change, reference):
    config = {**TINY, **change, "do_center_crop": True, "crop_size": 8}
    expected = reference(config)(ARRAYS[name], return_tensors="np")["pixel_values"]
    assert_same(Preprocessing.of(config)(ARRAYS[name]), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_that_nothing_is_done_to_keep_their_values(dtype, reference):
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_rescale": False}
    image = FRACTIONS.astype(dtype)
    assert_same(Preprocessing.of(config)(image), reference(config)(image, return_tensors="np")["pixel_values"])
    config["do_normalize"] = False
    assert_same(Preprocessing.of(config)(image), image[None])


@pytest.mark.parametrize("image", [pixels(9, 11, 4), pixels(4, 9, 11), pixels(9, 11, 1), pixels(9, 11, 4) / 255.0])
def test_channels_of_arrays_become_rgb_where_the_processor_says_so(image, reference):
    config = {**TINY, "do_convert_rgb": True}
    assert_same(Preprocessing.of(config)(image), reference(config)(image, return_tensors="np")["pixel_values"])


def test_arrays_without_channels_are_grey(reference):
    image = pixels(9, 11)
    assert_same(Preprocessing.of(GREY, 1)(image), reference(GREY)(image[None], return_tensors="np")["pixel_values"])
    config = {**TINY, "do_convert_rgb": True}
    assert_same(Preprocessing.of(config)(image), Preprocessing.of(config)(np.stack([image] * 3)))


def test_several_kinds_may_be_mixed(tmp_path):
    image = random_image(9, 11)
    image.save(tmp_path / "image.png")
    mixed = (image, np.asarray(image), tmp_path / "image.png", str(tmp_path / "image.png"))
    found = Preprocessing.of(TINY)(mixed)
    assert found.shape == (4, 3, 7, 9)
    assert all(np.array_equal(row, found[0]) for row in found)


def test_one_image_is_told_from_several():
    image = random_image(2, 2)
    assert all(map(is_one, [image, "a.png", Path("a.png"), pixels(2, 2), pixels(2, 2, 3)]))
    assert not any(map(is_one, [[image], ("a.png",), pixels(2, 3, 4, 4)]))


def test_callers_images_stay_as_they_were():
    image, array = random_image(9, 11), pixels(3, 9, 11).astype(float)
    before = image.tobytes(), array.copy()
    Preprocessing.of({**TINY, "do_center_crop": True, "crop_size": 20})([image, array])
    assert image.tobytes() == before[0]
    assert np.array_equal(array, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_processor_type": "SegformerImageProcessor"},
            "image_processor_type 'SegformerImageProcessor'.* ViTImageP",
        ),
        ({"image_processor_type": None}, "image_processor_type None"),
        (
            {
                "image_processor_type": None,
                "feature_extractor_type": "ViTFeatureExtractor",
                "auto_map": {"AutoImageProcessor": "own.Own"},
            },
            "image_processor_type None",
        ),
        ({"image_processor_type": 3}, "image_processor_type 3"),
        ({"image_processor_type": ["ViTImageProcessor"]}, r"image_processor_type \['ViT"),
        ({"do_pad": True}, "'do_pad': True, .* a ViTImageProcessor .*remove it"),
        ({"do_thumbnail": True}, "'do_thumbnail': True"),
        ({"do_flip_channel_order": 1}, "'do_flip_channel_order': 1"),
        ({"crop_pct": 0.9}, r"'crop_pct': 0\.9"),
        ({"size_divisor": 0}, "'size_divisor': 0"),
        ({"data_format": "channels_last"}, "'data_format': 'channels_last'"),
        ({"input_data_format": "channels_last"}, "'input_data_format'"),
        ({"do_resize": "yes"}, "do_resize 'yes': it must be true or false"),
        ({"do_normalize": 1}, "do_normalize 1: it must be true or false"),
        ({"size": -3}, "size -3: a side must be a whole number of pixels from 1 to 4096"),
        ({"size": 0}, "size 0: a side"),
        ({"size": 2**40}, "size 1099511627776: a side"),
        ({"size": 24.0}, r"size 24\.0: a side"),
        ({"size": True}, "size True: a side"),
        ({"size": "24"}, "size '24': a side"),
        ({"size": None}, "size None: a side"),
        ({"size": [24]}, r"size \[24\]: a side"),
        ({"size": {"height": 24}}, "size .*it must be a number of pixels, or have height and width; "),
        ({"size": {"longest_edge": 24}}, "size .*it must be"),
        ({"size": {"height": 24, "width": math.inf}}, "size .*a side"),
        ({"do_center_crop": True}, "crop_size None: a side"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size .*a crop needs height and width"),
        ({"resample": None}, "resample None: it must be Pillow's number of a filter, from 0 to 5"),
        ({"resample": 6}, "resample 6: it must be"),
        ({"resample": "bicubic"}, "resample 'bicubic': it must be"),
        ({"rescale_factor": None}, "rescale_factor None: it must be a number above 0"),
        ({"rescale_factor": math.nan}, "rescale_factor nan: it must be"),
        ({"rescale_factor": -1}, "rescale_factor -1: it must be"),
        ({"rescale_factor": 10**400}, "rescale_factor 1000+: it must be"),
        ({"rescale_factor": 1e300}, "makes pixels too large for float32"),
        ({"image_mean": None}, "image_mean None: it must be a number, or a list"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean .*it must be a number"),
        ({"image_mean": [0, math.inf, 0]}, "image_mean .*it must be a number"),
        ({"image_mean": [0.5]}, r"image_mean \[0\.5\]: the network takes images of 3 channel"),
        ({"image_std": 0}, "image_std 0: pixels are divided by it"),
        ({"image_std": [1, 0, 1]}, "image_std .*: pixels are divided by it"),
        ({"image_std": 1e-60}, "makes pixels too large for float32"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "size .*: give shortest_edge"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 9, "crop_pct": 0},
            "crop_pct 0: it must be a number",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 9, "crop_pct": 1e-9},
            "crop_pct 1e-09: with 9 pixels",
        ),
        (
            {"image_processor_type": "PoolFormerImageProcessor", "size": {"max_height": 2, "max_width": 3}},
            "size .*: give shortest_edge, or height and width",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.of({**TINY, **change})


@pytest.mark.parametrize("name", ["do_pad", "do_thumbnail", "keep_aspect_ratio"])
def test_steps_that_are_off_may_be_named(name):
    image = random_image(9, 11)
    expected = Preprocessing.of(TINY)(image)
    for off in (None, False):
        assert_same(Preprocessing.of({**TINY, name: off})(image), expected)


def test_config_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="must be an object of fields, got list"):
        Preprocessing.of([TINY])


@pytest.mark.parametrize(
    ("change", "num_channels", "message"),
    [
        ({}, 2, "the network takes images of 2 channels"),
        ({}, 1, r"image_mean .*the network takes images of 1 channel"),
        (
            {"do_convert_rgb": True},
            4,
            r"do_convert_rgb True: the network takes images of 4 channel\(s\): set it to false",
        ),
    ],
)
def test_processor_of_other_channels_is_refused_before_the_first_image(change, num_channels, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.of({**TINY, **change}, num_channels)


@pytest.fixture
def broken(tmp_path):
    """Files that are no images: missing, a folder, text, truncated."""
    image = io.BytesIO()
    random_image(40, 40).save(image, "PNG")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "truncated.png").write_bytes(image.getvalue()[:900])
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["missing.png", "folder.png", "text.png", "truncated.png"])
def test_files_that_cannot_be_read_are_named(name, broken):
    processor = Preprocessing.of(TINY)
    with pytest.raises(ValueError, match=f"image 1, .*{name}', cannot be (opened|read): "):
        processor([random_image(3, 3), broken / name])
    with pytest.raises(ValueError, match=f"the image, .*{name}', cannot be"):
        processor(str(broken / name))


def test_truncated_images_that_are_open_are_named(broken):
    with (
        Image.open(broken / "truncated.png") as image,
        pytest.raises(ValueError, match="image 0 cannot be read: OSError"),
    ):
        Preprocessing.of(TINY)([image])


def test_decompression_bomb_is_named(tmp_path, monkeypatch):
    random_image(40, 40).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png', cannot be opened: DecompressionBombError"):
        Preprocessing.of(TINY)(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        (np.zeros((0, 3, 4, 4), np.uint8), "there are no images"),
        (None, "images must be PIL images, numpy arrays or paths of files, one or a sequence, got NoneType"),
        (b"\x89PNG", "got bytes"),
        (iter([]), "got list_iterator"),
        ([3], "image 0 is of type int"),
        ([[random_image(2, 2)]], "image 0 is of type list"),
        (["https://example.org/a.png"], "image 0 is an address, 'https://example.org/a.png': download it first"),
        ("data:image/png;base64,AAAA", "the image is an address"),
        (Image.new("RGB", (0, 4)), "the image has no pixels: it is 0 x 4"),
        (Image.new("La", (4, 4)), "the image cannot be read: ValueError"),
        (np.zeros((0, 4, 3), np.uint8), r"the image has no pixels: its shape is \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), bool), "the image is an array of bool: give whole or floating numbers"),
        (np.zeros((4, 4, 3), complex), "array of complex"),
        (np.zeros(4, np.uint8), r"array of shape \(4,\): give \(H, W\)"),
        (np.zeros((8, 8, 2), np.uint8), r"array of shape \(8, 8, 2\)"),
        (np.zeros((1, 1, 3, 4, 4), np.uint8), r"must be \(B, C, H, W\) or \(B, H, W, C\)"),
        ([np.zeros((2, 3, 4, 4), np.uint8)], r"image 0 is an array of shape \(2, 3, 4, 4\)"),
        (np.zeros((5, 5), np.uint8), r"the image has 1 channel\(s\), and the network takes 3"),
        (np.zeros((5, 5, 4), np.uint8), r"the image has 4 channel\(s\), and the network takes 3"),
        (np.full((5, 5, 3), np.nan), "the image holds NaN or infinity"),
        (np.full((5, 5, 3), 1e300), r"the image has values from 1e\+300 to 1e\+300: give whole numbers from 0 to 255"),
        (np.full((5, 5, 3), -1), "the image has values from -1 to -1"),
        (np.full((5, 5, 3), 1.5), r"the image has values from 1\.5 to 1\.5"),
        (Image.new("L", (1, 100_000)), None),
    ],
)
def test_images_that_cannot_be_taken_are_refused(images, message):
    config = TINY
    if message is None:
        config, message = (
            {**TINY, "size": {"shortest_edge": 1024}},
            "the image is 1 x 100000 pixels and would be resized to",
        )
    with pytest.raises(ValueError, match=message):
        Preprocessing.of(config)(images)


def test_transparent_fractions_are_from_0_to_1():
    with pytest.raises(ValueError, match=r"the image has transparency and fractions from 2\.0 to 2\.0"):
        Preprocessing.of({**TINY, "do_convert_rgb": True})(np.full((5, 5, 4), 2.0))


def test_pixels_too_large_for_float32_are_refused():
    with pytest.raises(ValueError, match=r"the image has values up to 1e\+300, too large for float32"):
        Preprocessing.of({**TINY, "do_resize": False})(np.full((5, 5, 3), 1e300))


def test_sizes_that_differ_are_named_where_the_processor_sets_none(tmp_path):
    random_image(9, 11).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"image 0 becomes 6 x 5 pixels and image 1, .*b\.png', 11 x 9, as the image"):
        Preprocessing.of({**TINY, "do_resize": False})([random_image(5, 6), tmp_path / "b.png"])


def test_runtime_without_torch_and_transformers(tmp_path):
    random_image(9, 11).save(tmp_path / "image.png")
    code = f"""
import sys
from pwl_hf.runtime.preprocessing import Preprocessing
from pwl_hf.runtime.ranking import rank
pixels = Preprocessing.of({TINY!r})([{str(tmp_path / "image.png")!r}])
assert rank(pixels[:, 0, 0], list("abcdefghi"))
print(sorted({{"torch", "torchvision", "transformers", "huggingface_hub"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=300)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
