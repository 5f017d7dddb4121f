"""Students by size: a part of the teacher's depth and width, in each family (no torch).

Heads keep their width, as usual in ViT-Ti, -S and -B, so a part of the width is a part of the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pwl_hf.modeling.families.built_in import FAMILIES
from pwl_hf.modeling.families.driven import DrivenFamily
from pwl_hf.modeling.families.registry import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class SizePreset:
    """A student's size relative to its teacher's.

    Args:
        depth: The part of the layers, of each resolution level; at least one stays.
        width: The part of the channels.
    """

    depth: Fraction
    width: Fraction


_HALF, _QUARTER, _WHOLE = Fraction(1, 2), Fraction(1, 4), Fraction(1)

PRESETS: dict[str, SizePreset] = {
    "half-depth": SizePreset(_HALF, _WHOLE),
    "half-width": SizePreset(_WHOLE, _HALF),
    "half": SizePreset(_HALF, _HALF),
    "slim": SizePreset(_HALF, _QUARTER),
    "quarter": SizePreset(_QUARTER, _QUARTER),
}


def preset_overrides(name: str, teacher: PreTrainedConfig) -> dict[str, Any]:
    """What of a teacher's config is another in a student's of a preset's size.

    Args:
        name: A key of `PRESETS`.
        teacher: A config of any family that can be cut.

    Raises:
        ValueError: For an unknown name or family, and for a family of the user's own.

    Example:

        >>> from transformers import ViTConfig
        >>> preset_overrides("slim", ViTConfig())["hidden_size"]
        192
    """
    if name not in PRESETS:
        raise ValueError(f"student_preset must be one of {', '.join(PRESETS)}, got {name!r}")
    preset, family = PRESETS[name], family_of(teacher)
    if family.model_type in _FAMILIES:
        return _FAMILIES[family.model_type](teacher, preset)
    if isinstance(family, DrivenFamily) and family.model_type in FAMILIES and _has_one_width(family, teacher):
        return _driven(teacher, preset)
    raise ValueError(
        f"student_preset={name}: presets know no sizes of model_type {family.model_type!r}: give "
        "student_config_overrides"
    )


def _has_one_width(family: DrivenFamily, teacher: PreTrainedConfig) -> bool:
    """Whether all layers of a network are alike, and its config says how wide they are."""
    return len(family.depths(teacher)) == 1 and all(hasattr(teacher, name) for name in _ENCODER)


def _part(whole: int, part: Fraction, multiple: int = 1) -> int:
    """A part of a size, at least one multiple."""
    return max(1, round(whole * part / multiple)) * multiple


def _heads(width: int, heads: int, part: Fraction) -> tuple[int, int]:
    """Width and heads of a part of the width; of less than one head, a head that is narrower."""
    if heads * part < 1:
        return _part(width, part), 1
    count = _part(heads, part)
    return width // heads * count, count


def _transformer(teacher: Any, preset: SizePreset) -> dict[str, Any]:
    found = _encoder(teacher, preset)
    between = teacher.intermediate_size * found["hidden_size"] // teacher.hidden_size
    return found | {"intermediate_size": max(1, between)}


# How the sizes of a network of one width are called.
_ENCODER = ("num_hidden_layers", "hidden_size", "num_attention_heads")


def _encoder(teacher: Any, preset: SizePreset) -> dict[str, Any]:
    width, heads = _heads(teacher.hidden_size, teacher.num_attention_heads, preset.width)
    return {
        "num_hidden_layers": _part(teacher.num_hidden_layers, preset.depth),
        "hidden_size": width,
        "num_attention_heads": heads,
    }


def _driven(teacher: Any, preset: SizePreset) -> dict[str, Any]:
    """Of a driven network of one width: sizes by the names that the type has for them."""
    found = _encoder(teacher, preset)
    own = {field.name for field in dataclasses.fields(teacher)}
    for name in ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "hidden_dim", "n_inner"):
        if name in own and (between := getattr(teacher, name)) is not None:
            found[name] = max(1, between * found["hidden_size"] // teacher.hidden_size)
    if "num_key_value_heads" in own:
        heads, groups = found["num_attention_heads"], teacher.num_key_value_heads or teacher.num_attention_heads
        found["num_key_value_heads"] = max(n for n in range(1, min(heads, groups) + 1) if heads % n == 0)
    return {name if name in own else teacher.attribute_map[name]: value for name, value in found.items()}


def _levels(teacher: Any, preset: SizePreset) -> dict[str, Any]:
    return {
        "depths": [_part(depth, preset.depth) for depth in teacher.depths],
        "hidden_sizes": [_part(width, preset.width) for width in teacher.hidden_sizes],
    }


def _resnet(teacher: Any, preset: SizePreset) -> dict[str, Any]:
    # A bottleneck has a quarter of the channels within.
    multiple = 4 if teacher.layer_type == "bottleneck" else 1
    return _levels(teacher, preset) | {
        "hidden_sizes": [_part(width, preset.width, multiple) for width in teacher.hidden_sizes],
        "embedding_size": _part(teacher.embedding_size, preset.width),
    }


def _swin(teacher: Any, preset: SizePreset) -> dict[str, Any]:
    width, _ = _heads(teacher.embed_dim, teacher.num_heads[0], preset.width)
    heads = []
    for level, count in enumerate(teacher.num_heads):
        wanted = _part(count, preset.width)
        heads.append(next(n for n in range(wanted, 0, -1) if width * 2**level % n == 0))
    return {
        "embed_dim": width,
        "num_heads": heads,
        "depths": [_part(depth, preset.depth) for depth in teacher.depths],
    }


_FAMILIES: dict[str, Callable[[Any, SizePreset], dict[str, Any]]] = {
    "vit": _transformer,
    "deit": _transformer,
    # Its feed-forward part is a ratio, which stays.
    "dinov2": _encoder,
    "resnet": _resnet,
    "convnext": _levels,
    "swin": _swin,
    "pwl_vgg": _levels,
}
