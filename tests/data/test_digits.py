"""The digits, and their one preprocessing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor

from pwl_hf.data.digits import image_processor, load_splits
from pwl_hf.data.processing import to_tensor


@pytest.fixture(scope="module")
def splits():
    return load_splits()


def test_splits_are_stratified_and_hold_every_image_once(splits):
    train, test = splits
    assert (len(train.images), len(test.images)) == (1078, 719)
    every = Counter(tuple(np.asarray(image).ravel()) for image in train.images + test.images)
    assert every == Counter(tuple(np.round(row * 255 / 16).astype(np.uint8)) for row in load_digits().data)
    for digit in range(10):
        whole = (load_digits().target == digit).mean()
        assert np.mean(np.array(test.labels) == digit) == pytest.approx(whole, abs=0.002)


def test_splits_are_always_the_same(splits):
    again = load_splits()
    assert again == splits


def test_processor_scales_grey_values_from_minus_one_to_one(splits):
    _, test = splits
    found = to_tensor(test.images, image_processor())
    grey = np.stack([np.asarray(image) for image in test.images])
    expected = torch.from_numpy(grey / 127.5 - 1).float()[:, None].expand(-1, 3, -1, -1)
    assert found.shape == (719, 3, 8, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert (found.min().item(), found.max().item()) == (-1, 1)


def test_saved_processor_gives_the_training_tensors_also_for_greyscale(splits, tmp_path):
    _, test = splits
    image_processor().save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    expected = to_tensor(test.images[:20], image_processor())
    assert torch.equal(loaded(images=test.images[:20], return_tensors="pt")["pixel_values"], expected)
