"""The largest networks and repositories there can be (pure Python).

What a config or a manifest says is believed before any weight has been seen. One that claims a billion layers or
labels is refused before anything is made for each of them, so reading one takes time in proportion to its length.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Twice the units of the deepest networks that were published.
MAX_UNITS = 2048
MAX_LABELS = 1_000_000
# Each stage has a mask over all blocks, so their number squared is what a schedule costs.
MAX_BLOCKS = 256
# The BatchNorm statistics of every mask of 12 blocks are 4,096 files.
MAX_FILES = 10_000
MAX_METRICS = 10_000
# 32 MiB: the labels of ImageNet-21k, six times over, are 6.
MAX_TEXT_BYTES = 1 << 25
# Of a config: ten times what any has.
MAX_LEVELS = 32
MAX_ENTRIES = 4096
_LABELS = ("id2label", "label2id")


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


def check_count(name: str, count: int, most: int, what: str) -> None:
    """Refuse more of something than there can be.

    Args:
        name: What to name in the error, such as `"pwl_index.json"`.
        count: How many there are.
        most: How many there can be.
        what: What they are.

    Raises:
        ValueError: If there are more.
    """
    if count > most:
        raise ValueError(f"{name} has {count} {what}, there can be {most} at most")


def check_document(name: str, data: Any) -> None:
    """Refuse a JSON document that is nested deeper, or has longer lists, than any config.

    Args:
        name: The document to name in the error.
        data: What it says.

    Raises:
        ValueError: If a list or an object has more than `MAX_ENTRIES` entries (of labels, `MAX_LABELS`), or they are
            nested in more than `MAX_LEVELS` levels.
    """
    # Level by level, without recursion: the deepest one is what is looked for.
    level: list[tuple[str, Any]] = [("", data)]
    for _ in range(MAX_LEVELS):
        below: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, dict | list):
                check_count(name, len(value), MAX_LABELS if key in _LABELS else MAX_ENTRIES, f"entries in {key!r:.100}")
                entries = value.items() if isinstance(value, dict) else ((key, entry) for entry in value)
                below += [(inner, entry) for inner, entry in entries if isinstance(entry, dict | list)]
        if not below:
            return
        level = below
    raise ValueError(f"{name} is nested in more than {MAX_LEVELS} levels")
