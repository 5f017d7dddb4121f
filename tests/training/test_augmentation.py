"""Augmentation: what each setting does to an image, and that its randomness belongs to the image alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pwl_hf.data.digits import image_processor, load_splits
from pwl_hf.data.processing import to_tensor
from pwl_hf.training.images.augmentation import AUGMENTATIONS, Augmentation
from pwl_hf.training.images.noise import uniforms

PARTS = st.sampled_from([0.0, 0.05, 0.2])
WAYS = st.builds(
    Augmentation,
    rotation=st.sampled_from([0.0, 15.0, 90.0]),
    horizontal_flip=st.booleans(),
    crop=st.sampled_from([0.0, 0.1, 0.3]),
    scale=PARTS,
    shift=PARTS,
    background=st.booleans(),
)
# 63 bits, as a loader's int64 holds them.
IDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True)
SEEDS = st.integers(0, 2**63 - 1)


def images(count: int, height: int = 7, width: int = 7, channels: int = 2) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def counted(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)


def many(image: torch.Tensor, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    return image.expand(count, *image.shape[1:]), torch.arange(count)


@given(WAYS, IDS, SEEDS, st.integers(0, 10**6), st.randoms())
@settings(deadline=None, max_examples=40)
def test_an_image_is_changed_the_same_way_in_any_batch(way, ids, seed, step, chance):
    sample_ids, pixel_values = torch.tensor(ids), images(len(ids))
    together = way.augment(pixel_values, sample_ids, seed, step)
    assert together.shape == pixel_values.shape
    assert torch.equal(together, way.augment(pixel_values, sample_ids, seed, step))
    order = list(range(len(ids)))
    chance.shuffle(order)
    order = order[: chance.randint(1, len(order))]
    assert torch.equal(way.augment(pixel_values[order], sample_ids[order], seed, step), together[order])


@given(IDS, SEEDS, st.integers(0, 10**6), st.booleans())
@settings(deadline=None, max_examples=20)
def test_without_settings_the_input_comes_back(ids, seed, step, background):
    pixel_values = images(len(ids))
    assert Augmentation(background=background).augment(pixel_values, torch.tensor(ids), seed, step) is pixel_values


@given(WAYS, IDS, SEEDS)
@settings(deadline=None, max_examples=40)
def test_no_value_leaves_the_range_of_the_image(way, ids, seed):
    pixel_values = images(len(ids))
    changed = way.augment(pixel_values, torch.tensor(ids), seed, 3)
    assert (changed >= pixel_values.amin((2, 3), keepdim=True) - 1e-5).all()
    assert (changed <= pixel_values.amax((2, 3), keepdim=True) + 1e-5).all()


@given(WAYS, IDS, SEEDS)
@settings(deadline=None, max_examples=40)
def test_maps_move_with_their_images_in_one_call_or_two(way, ids, seed):
    sample_ids, pixel_values, maps = torch.tensor(ids), images(len(ids)), images(len(ids), channels=1)
    both = way.augment(torch.cat([pixel_values, maps], dim=1), sample_ids, seed, 5)
    # Pixel for pixel, so a map that is a function of the image stays that function.
    torch.testing.assert_close(both[:, 2:], way.augment(maps, sample_ids, seed, 5))
    torch.testing.assert_close(both[:, :2], way.augment(pixel_values, sample_ids, seed, 5))


@given(st.booleans(), st.sampled_from([0.0, 0.2, 0.4]), st.integers(1, 9), st.integers(1, 9), st.booleans(), SEEDS)
@settings(deadline=None, max_examples=60)
def test_flip_and_crop_move_values_as_padding_and_cutting_do(flip, crop, height, width, background, seed):
    way = Augmentation(horizontal_flip=flip, crop=crop, background=background)
    image = counted(height, width)
    changed = way.augment(*many(image, 30), seed, 0)
    down, right = round(crop * height), round(crop * width)
    mode = {"mode": "constant", "value": 0.0} if background else {"mode": "reflect"}
    padded = torch.nn.functional.pad(image, (right, right, down, down), **mode)
    crops = [padded[0, :, y : y + height, x : x + width] for y in range(2 * down + 1) for x in range(2 * right + 1)]
    possible = {tuple(crop.flatten().tolist()) for crop in crops + [crop.flip(-1) for crop in crops if flip]}
    assert {tuple(found.flatten().tolist()) for found in changed} <= possible


def test_every_flip_and_every_crop_comes_as_often():
    way = AUGMENTATIONS["flip-crop"]
    changed = way.augment(*many(counted(32, 32), 16_200), 0, 0)
    _, counts = changed.flatten(1).unique(dim=0, return_counts=True)
    # 81 crops, each as it is or mirrored: 100 of each are expected, with a standard deviation of 10.
    assert len(counts) == 162
    assert 50 < counts.min() <= counts.max() < 150


def test_resampling_by_whole_pixels_is_what_moving_values_gives():
    exact = AUGMENTATIONS["flip-crop"]
    # So small a shift is none, but takes the other way.
    resampled = Augmentation(horizontal_flip=True, crop=exact.crop, shift=1e-9)
    for background in (False, True):
        for size in ((32, 32), (32, 16), (16, 48)):
            first, second = (
                type(way)(**{**vars(way), "background": background}).augment(*many(images(1, *size), 64), 7, 1)
                for way in (exact, resampled)
            )
            torch.testing.assert_close(first, second, atol=2e-5, rtol=0)


def test_rotation_turns_by_up_to_its_angle_either_way():
    # A bright dot at the end of an arm of 20 pixels tells the angle.
    image = torch.zeros(1, 1, 49, 49)
    image[..., 23:26, 43:46] = 1
    changed = Augmentation(rotation=15).augment(*many(image, 500), 0, 0)[:, 0]
    weights = changed / changed.sum((1, 2), keepdim=True)
    places = torch.arange(49) - 24.0
    x, y = (weights.sum(1) * places).sum(1), (weights.sum(2) * places).sum(1)
    assert torch.allclose(torch.hypot(x, y), torch.full_like(x, 20), atol=0.3)
    angles = torch.atan2(y, x) * 180 / math.pi
    assert -15.5 < angles.min() < -14
    assert 14 < angles.max() < 15.5
    assert angles.mean().abs() < 1
    # Uniform: a quarter of them in the middle quarter.
    assert 0.19 < (angles.abs() < 3.75).float().mean() < 0.31


def test_rotation_keeps_the_shape_of_what_is_in_an_oblong_image():
    image = torch.zeros(1, 1, 33, 65)
    image[..., 15:18, 44:47] = 1
    changed = Augmentation(rotation=90, background=True).augment(*many(image, 50), 0, 0)[:, 0]
    weights = changed / changed.sum((1, 2), keepdim=True)
    x = (weights.sum(1) * (torch.arange(65) - 32.0)).sum(1)
    y = (weights.sum(2) * (torch.arange(33) - 16.0)).sum(1)
    assert torch.allclose(torch.hypot(x, y), torch.full_like(x, 13), atol=0.3)


def test_scale_grows_and_shrinks():
    image = torch.zeros(1, 1, 41, 41)
    image[..., 10:31, 10:31] = 1
    areas = Augmentation(scale=0.2).augment(*many(image), 0, 0).sum((1, 2, 3)) / image.sum()
    assert 0.66 < areas.min() < 0.75
    assert 1.4 < areas.max() < 1.6


def test_seed_and_step_change_every_image():
    pixel_values, sample_ids = images(20), torch.arange(20)
    for way in (AUGMENTATIONS["paper"], AUGMENTATIONS["digits"]):
        first = way.augment(pixel_values, sample_ids, 0, 0)
        for seed, step in ((1, 0), (0, 1)):
            other = way.augment(pixel_values, sample_ids, seed, step)
            assert not (first == other).flatten(1).all(1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["paper", "digits", "flip-crop"])
def test_any_precision_goes_the_same_way(name, dtype):
    pixel_values, sample_ids = images(16, 32, 32), torch.arange(16)
    changed = AUGMENTATIONS[name].augment(pixel_values.to(dtype), sample_ids, 0, 0)
    assert changed.dtype == dtype
    expected = AUGMENTATIONS[name].augment(pixel_values.to(dtype).float(), sample_ids, 0, 0)
    torch.testing.assert_close(changed.float(), expected.to(dtype).float())


def test_digits_are_moved_a_little_and_get_no_ink():
    pixel_values = to_tensor(load_splits()[0].images[:200], image_processor())
    way, sample_ids = AUGMENTATIONS["digits"], torch.arange(200)
    changed = way.augment(pixel_values, sample_ids, 0, 0)
    difference = (changed - pixel_values).square().mean().sqrt()
    between = (pixel_values[1:] - pixel_values[:-1]).square().mean().sqrt()
    assert 0 < difference < between / 2
    # What comes in from outside is background: an empty image stays empty.
    empty = torch.full((2, 3, 8, 8), -1.0)
    assert torch.equal(way.augment(empty, sample_ids[:2], 0, 0), empty)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rotation": -1}, "rotation is an angle from 0 to 180 degrees, got -1"),
        ({"rotation": math.nan}, "rotation is an angle"),
        ({"crop": 1}, "crop is a part, from 0 to below 1, got 1"),
        ({"shift": -0.1}, "shift is a part"),
        ({"scale": 4}, "scale is a part"),
    ],
)
def test_settings_out_of_range_raise(setting, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**setting)


def test_ids_of_another_number_raise():
    with pytest.raises(ValueError, match=r"one for each image, got \(2,\) for pixel_values of \(3, 2, 7, 7\)"):
        AUGMENTATIONS["paper"].augment(images(3), torch.arange(2), 0, 0)


def test_an_empty_batch_stays_empty():
    assert AUGMENTATIONS["paper"].augment(images(0), torch.arange(0), 0, 0).shape == (0, 2, 7, 7)


def test_uniforms_are_those_of_splitmix64():
    # Written out with Python's own whole numbers, which do not wrap.
    def mix(word: int) -> int:
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31

    golden, ids = 0x9E3779B97F4A7C15, [0, 1, 2**40 + 3, 2**63 - 1]
    found = uniforms(torch.tensor(ids), 3, 5, 7)
    key = mix((mix((golden + 5) % 2**64) + golden + 7) % 2**64)
    for column, number in enumerate(ids):
        start = mix((number + key) % 2**64)
        for row in range(3):
            word = mix((start + (row + 1) * golden) % 2**64)
            assert found[row, column].item() == (word >> 40) / 2**24


@given(IDS, SEEDS, st.integers(0, 10**9), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_uniforms_lie_in_the_unit_interval_and_later_ones_do_not_change_earlier(ids, seed, step, count):
    found = uniforms(torch.tensor(ids), count, seed, step)
    assert found.shape == (count, len(ids))
    assert ((found >= 0) & (found < 1)).all()
    assert torch.equal(uniforms(torch.tensor(ids), count + 1, seed, step)[:count], found)


def test_uniforms_are_uniform_and_independent():
    for keys in ((0, 0), (0, 1), (1, 0), (2**63 - 1, 10**6)):
        found = uniforms(torch.arange(100_000), 6, *keys)
        # Standard errors: 0.0009 of a mean, 0.003 of a correlation.
        assert (found.mean(1) - 0.5).abs().max() < 0.005
        assert (found.var(1) * 12 - 1).abs().max() < 0.02
        rows = torch.cat([found[:, 1:], found[:, :-1], uniforms(torch.arange(1, 100_000), 1, keys[0], keys[1] + 1)])
        assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["paper", "digits", "flip-crop"])
def test_a_gpu_goes_the_same_way(name):
    pixel_values, sample_ids = images(64, 32, 32), torch.arange(64)
    expected = AUGMENTATIONS[name].augment(pixel_values, sample_ids, 3, 5)
    found = AUGMENTATIONS[name].augment(pixel_values.cuda(), sample_ids.cuda(), 3, 5)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=0)
    assert torch.equal(uniforms(sample_ids.cuda(), 3, 1).cpu(), uniforms(sample_ids, 3, 1))
