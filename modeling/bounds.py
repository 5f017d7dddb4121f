"""The largest networks there can be (pure Python).

What a config says is believed before any weight has been seen. One that claims a billion layers or labels is refused
before anything is made for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Twice the units of the deepest networks that were published.
MAX_UNITS = 2048
MAX_LABELS = 1_000_000


def check_depth(name: str, num_units: int) -> None:
    """Refuse a network of more units than any has.

    Args:
        name: What to name in the error, such as `"teacher_config"`.
        num_units: Its layers or residual blocks.

    Raises:
        ValueError: If there are more than `MAX_UNITS`.
    """
    if num_units > MAX_UNITS:
        raise ValueError(f"{name} is of {num_units} units (layers, residual blocks), there can be {MAX_UNITS} at most")


def check_claims(name: str, fields: Mapping[str, Any]) -> None:
    """Refuse the fields of a config that claim more than there can be, before the config is made.

    Args:
        name: The config to name in the error, such as `"teacher_config"`.
        fields: Its fields as they are written; what is no number is left to the config itself.

    Raises:
        ValueError: If they claim more than `MAX_UNITS` units or `MAX_LABELS` labels.
    """
    depths = fields.get("depths")
    for depth in (fields.get("num_hidden_layers"), *(depths if isinstance(depths, list | tuple) else ())):
        if isinstance(depth, int):
            check_depth(name, depth)
    num_labels = fields.get("num_labels")
    if isinstance(num_labels, int) and num_labels > MAX_LABELS:
        raise ValueError(f"{name} has num_labels {num_labels}, there can be {MAX_LABELS} at most")
