"""All stages in one number."""

from __future__ import annotations

import numpy as np
import pytest

from pwl_hf.evaluation import area_over_bytes
from pwl_hf.evaluation.area import is_monotone


def test_area_is_the_mean_accuracy_over_all_bytes():
    accuracies, total_bytes = [0.5, 0.25, 0.75, 1.0], [3, 10, 64, 100]

    def answer_after(received: int) -> float:
        return max([(size, value) for size, value in zip(total_bytes, accuracies, strict=True) if size <= received])[1]

    by_byte = [0.0 if received < 3 else answer_after(received) for received in range(100)]
    assert area_over_bytes(accuracies, total_bytes) == pytest.approx(np.mean(by_byte))


def test_area_of_a_model_in_one_piece_is_zero():
    assert area_over_bytes([0.9], [100]) == 0


def test_smaller_student_of_the_same_accuracy_has_the_greater_area():
    assert area_over_bytes([0.7, 0.9], [10, 100]) > area_over_bytes([0.7, 0.9], [20, 100])


@pytest.mark.parametrize("total_bytes", [[10], [10, 10, 20], [0, 10, 20], [30, 20, 10]])
def test_sizes_that_cannot_be_raise(total_bytes):
    with pytest.raises(ValueError, match="total_bytes must"):
        area_over_bytes([0.1, 0.2, 0.3], total_bytes)


def test_monotone_allows_equal_stages_and_no_dip():
    assert is_monotone([0.1, 0.2, 0.2, 0.9])
    assert not is_monotone([0.1, 0.3, 0.2, 0.9])
