"""The digits of scikit-learn: 1797 real 8x8 greyscale images that come with the library, so nothing is downloaded.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), its test part.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from transformers import ViTImageProcessorPil

from pwl_hf.data.errors import DataError

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise DataError('the digits need the package scikit-learn: pip install "pwl-hf[evaluate]"') from error

DATASET = "scikit-learn digits"
LABELS = tuple("0123456789")
SIZE = 8

# 719 images to test on: at 95 % a standard error of 0.8 points.
_TEST_PART = 0.4
# The split belongs to the data set, not to a run: runs of all seeds are measured on the same images.
_SPLIT_SEED = 0


class Digits(NamedTuple):
    """A split.

    Args:
        images: Greyscale PIL images, 8x8, 0 is the background.
        labels: The digit on each.
    """

    images: list[Image.Image]
    labels: list[int]


def load_splits() -> tuple[Digits, Digits]:
    """The training split (1078 images) and the test split (719), stratified by digit, always the same."""
    data = load_digits()
    # Grey values go from 0 to 16; images on disk and in pipelines have bytes.
    grey = np.round(data.images * (255 / 16)).astype(np.uint8)
    split = train_test_split(grey, data.target, test_size=_TEST_PART, random_state=_SPLIT_SEED, stratify=data.target)
    train, test, train_labels, test_labels = split
    return _digits(train, train_labels), _digits(test, test_labels)


def _digits(grey: np.ndarray, labels: np.ndarray) -> Digits:
    return Digits([Image.fromarray(pixels) for pixels in grey], labels.tolist())


def image_processor() -> ViTImageProcessorPil:
    """The processor of the digits: three equal channels, 8x8, from -1 to 1; greyscale images may be given too."""
    return ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_convert_rgb=True)
