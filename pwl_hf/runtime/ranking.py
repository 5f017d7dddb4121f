"""From logits to named scores, as transformers' pipelines rank them.

Notation: B samples of N labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

# What makes scores of logits.
FUNCTIONS = ("none", "sigmoid", "softmax")
_PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


class Answer(TypedDict):
    """A label and how sure of it the network is."""

    label: str
    score: float


def rank(
    logits: ArrayLike,
    labels: Sequence[str],
    problem_type: str | None = None,
    top_k: int | None = 5,
    function_to_apply: str | None = None,
) -> list[list[Answer]]:
    """The best labels of each sample, the best first; of equal scores, in the order of the labels.

    Scores are softmax probabilities; sigmoid ones if `problem_type` is multi-label or there is one label; the logits
    themselves if it is `"regression"`. Each is a Python float, bit for bit what the pipeline of images gives.

    Args:
        logits: (B, N) floating; float16 is read as float32.
        labels: The N labels' names, in the order of the logits.
        problem_type: The config's `problem_type`.
        top_k: The most labels a sample gets; None for all.
        function_to_apply: What makes scores in place of all that, one of `FUNCTIONS`.

    Raises:
        ValueError: If logits are no (B, N) numbers or hold NaN, there are as many labels as not, the problem type or
            the function is unknown, or `top_k` is below 1.

    Example:

        >>> rank([[2.0, 0.0, 2.0]], ["cat", "dog", "owl"], top_k=2)
        [[{'label': 'cat', 'score': 0.4683105308334812}, {'label': 'owl', 'score': 0.4683105308334812}]]
    """
    if problem_type not in _PROBLEM_TYPES:
        known = ", ".join(map(repr, _PROBLEM_TYPES))
        raise ValueError(f"problem_type is {problem_type!r:.100}, it must be one of {known}")
    check_top_k(top_k)
    check_function(function_to_apply)
    rows = np.asarray(logits)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(f"logits must be floating numbers (samples, labels), got {rows.dtype} of shape {rows.shape}")
    if rows.shape[1] != len(labels) or len(labels) == 0:
        raise ValueError(
            f"logits are of {rows.shape[1]} labels and there are {len(labels)} names: one each, and one at least"
        )
    if rows.dtype == np.float16:
        rows = rows.astype(np.float32)
    # One row at a time: a sum over many may add in another order.
    function = function_to_apply or _function_of(problem_type, len(labels))
    most = len(labels) if top_k is None else int(top_k)
    return [_ranked(row, number, labels, function, most) for number, row in enumerate(rows)]


def check_function(function_to_apply: str | None) -> None:
    """Refuse a function that there is not.

    Raises:
        ValueError: With those that there are.
    """
    if function_to_apply is not None and function_to_apply not in FUNCTIONS:
        raise ValueError(f"function_to_apply is {function_to_apply!r:.100}, it must be one of {', '.join(FUNCTIONS)}")


def check_top_k(top_k: int | None) -> None:
    """Refuse a number of labels that cannot be.

    Raises:
        ValueError: With the number.
    """
    if top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r:.100}, it must be a whole number of at least 1")


def _ranked(row: NDArray[np.floating], number: int, labels: Sequence[str], function: str, top_k: int) -> list[Answer]:
    scores = _scores(row, function)
    if np.isnan(scores).any():
        raise ValueError(f"the logits of sample {number} make scores of NaN: the network's weights may not be finite")
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": labels[index], "score": scores[index].item()} for index in best]


def _function_of(problem_type: str | None, num_labels: int) -> str:
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or num_labels == 1 else "softmax"


def _scores(row: NDArray[np.floating], function: str) -> NDArray[np.floating]:
    if function == "none":
        return row
    if function == "sigmoid":
        # An overflow is a score of 0.
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + np.exp(-row))
    # Infinities make NaN, which the caller refuses.
    with np.errstate(invalid="ignore"):
        shifted = np.exp(row - np.max(row, axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
