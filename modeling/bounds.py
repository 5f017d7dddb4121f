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


# Sizes of a config, of any family: whole numbers, or one for each level.
_SIZES = (
    "embed_dim",
    "embedding_size",
    "head_dim",
    "hidden_size",
    "hidden_sizes",
    "image_size",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_ratio",
    "num_attention_heads",
    "num_channels",
    "num_heads",
    "num_key_value_heads",
    "patch_size",
    "vocab_size",
    "window_size",
)
MAX_SIZE = 2**24


def check_values(name: str, config: object) -> None:
    """Refuse a config that no network can be built of, without building it.

    Args:
        name: The config to name in the error, such as `"teacher_config"`.
        config: The config.

    Raises:
        ValueError: For a size that is not positive or larger than any, a rate of dropout that is none, or a key that
            takes the place of a method.
    """
    for key in _SIZES:
        value = getattr(config, key, None)
        for size in value if isinstance(value, list | tuple) else (value,):
            is_number = isinstance(size, int | float) and not isinstance(size, bool)
            if is_number and not 0 < size <= MAX_SIZE:
                raise ValueError(f"{name} has {key} {value!r:.100}, it must be above 0 and at most {MAX_SIZE}")
    for key, value in vars(config).items():
        if callable(getattr(type(config), key, None)):
            raise ValueError(f"{name} has a field {key!r}, which takes the place of a method: leave it out")
        is_rate = key.endswith(("dropout", "dropout_prob", "drop_path_rate", "dropout_rate"))
        if is_rate and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ValueError(f"{name} has {key} {value!r}, it must be from 0 to 1")
