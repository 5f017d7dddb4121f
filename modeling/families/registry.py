"""The families that can be cut into blocks, by `model_type`: those of the library, and those that users register."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES: dict[str, Family] = {}

_TWO_STACKS = "it has two stacks of layers, one of which reads the other"
_EXPERTS = "its experts are saved in other tensors than they are held in"
# Types that people ask for and that cannot be cut, with the reason.
UNCUTTABLE = {
    "albert": "its layers are one module, called again and again",
    **dict.fromkeys(("bart", "mbart", "t5", "mt5", "umt5", "led", "plbart", "mvp"), _TWO_STACKS),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), _EXPERTS),
    "dinat": "its attention is that of the package natten, without which no cut could be checked",
    "imagegpt": "it takes the numbers of colours, not pixels",
    "perceiver": "its layers are one stack, called again and again",
    "pp_lcnet": "its class gives no logits that a task could find",
    "shieldgemma2": "it is a language model that answers with a word",
    "timm_wrapper": "its layers are those of timm, whose networks are each built in another way",
}

# Config classes that transformers' AutoConfig may not know, by `model_type`.
OWN_CONFIGS: dict[str, type[PreTrainedConfig]] = {}


def register_family(model_type: str, family: Family, *, config_class: type[PreTrainedConfig] | None = None) -> None:
    """Let networks of a `model_type` be teachers and students.

    To be called wherever such a model is joined or loaded, before it is. What a family has to tell is in
    `Family`; those of the library are examples.

    Args:
        model_type: The `model_type` of the networks' configs.
        family: How they are cut.
        config_class: Their config class, if transformers lacks it.

    Raises:
        ValueError: If the name is taken.
        TypeError: If `family` is not a `Family`.

    Example:

        >>> from pwl_hf import register_family
        >>> register_family("my-net", MyNetFamily(), config_class=MyNetConfig)  # doctest: +SKIP
    """
    if not isinstance(family, Family):
        raise TypeError(f"the family of {model_type!r} must be a Family, got {type(family).__name__}")
    if model_type in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} has a family already, {type(FAMILIES[model_type]).__name__}: give yours a "
            "model_type of its own"
        )
    FAMILIES[model_type] = family
    if config_class is not None:
        OWN_CONFIGS[model_type] = config_class


def family_of(config: PreTrainedConfig | str) -> Family:
    """The family of a network's config, or of its `model_type`.

    Raises:
        ValueError: If the `model_type` cannot be cut, with those that can.
    """
    model_type = config if isinstance(config, str) else config.model_type
    if model_type not in FAMILIES and model_type in UNCUTTABLE:
        raise ValueError(f"model_type {model_type!r} cannot be cut into blocks: {UNCUTTABLE[model_type]}")
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} cannot be cut into blocks; the supported ones are "
            f"{', '.join(sorted(FAMILIES))}, and register_family adds one of your own"
        )
    return FAMILIES[model_type]


def most_tokens(*configs: PreTrainedConfig) -> int | None:
    """The most tokens of a text that all of some networks have positions for; None if none sets a limit."""
    found = [most for config in configs if (most := family_of(config).max_tokens(config)) is not None]
    return min(found, default=None)
