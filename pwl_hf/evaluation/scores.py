"""What is measured besides right answers: macro F1, and of tagged words the F1 of spans.

Notation: K labels; n answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from pwl_hf.modeling.errors import InputError

# A tag of a scheme of spans: where in a span a word stands, and of what kind it is.
_TAG = re.compile(r"O|[BIESLU]-.+")


def counts_by_class(answers: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """How often each class is answered rightly, is answered, and is the label: (3, K) int64.

    Args:
        answers: (n,) int64; below 0 for no answer.
        labels: (n,) int64, from 0 to K - 1.
        num_labels: K.
    """
    chosen = (labels[answers == labels], answers[answers >= 0], labels)
    return np.stack([np.bincount(found, minlength=num_labels) for found in chosen])


def macro_f1(counts: np.ndarray) -> float:
    """The mean over classes of F1, of those that are answered or are labels, as scikit-learn has it.

    Args:
        counts: As `counts_by_class` gives them.
    """
    right, answered, labelled = counts
    seen = answered + labelled > 0
    return float(np.mean(2 * right[seen] / (answered + labelled)[seen])) if seen.any() else 0.0


def are_tags(names: Sequence[str]) -> bool:
    """Whether labels are tags of spans: `O`, `B-PER`, `I-PER` and so on."""
    return "O" in names and len(names) > 1 and all(_TAG.fullmatch(name) for name in names)


def span_f1(answers: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str]) -> float:
    """F1 of whole spans, over all kinds of them, by seqeval as in transformers' examples.

    Args:
        answers: Of each text the answers at its words, below 0 for none.
        labels: Of each text the labels of its words.
        names: The tags, by number.

    Raises:
        InputError: If seqeval is not installed.
    """
    try:
        from seqeval.metrics import f1_score  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError('spans are counted by the package seqeval: pip install "pwl-hf[evaluate]"') from error
    found = [[names[number] if number >= 0 else "O" for number in row] for row in answers]
    wanted = [[names[number] for number in row] for row in labels]
    return float(f1_score(wanted, found, zero_division=0))


def stage_scores(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict[str, float]]:
    """Accuracy and F1 of several stages, by name: `accuracy`, `macro_f1`, and of tags `span_f1`.

    Args:
        answers: (n, stages) int64, or of words (texts, tokens, stages).
        labels: (n,) or (texts, tokens) int64; below 0 where none counts.
        names: The labels' names, by number.
    """
    counted = labels >= 0
    found = []
    for chosen in np.moveaxis(answers, -1, 0):
        own, wanted = chosen[counted], labels[counted]
        scores = {
            "accuracy": float(np.mean(own == wanted)),
            "macro_f1": macro_f1(counts_by_class(own, wanted, len(names))),
        }
        if labels.ndim == 2 and are_tags(names):
            rows = [row for row in range(len(labels)) if counted[row].any()]
            by_text, expected = ([values[row][counted[row]] for row in rows] for values in (chosen, labels))
            scores["span_f1"] = span_f1(by_text, expected, names)
        found.append(scores)
    return found
