"""What a model is called with when it is exported: what is traced, and what its graphs are compared on.

Notation: B samples; texts of L tokens, waveforms of L samples, features of L frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import SaveError
from ..families.registry import family_of
from ..task_names import FIRST_TASK, TASKS

if TYPE_CHECKING:
    from ..configuration_pwl import PWLConfig

# Two samples: one alone would be taken for a fixed size.
SAMPLES = 2
# The longest text that graphs are compared on, if a window of attention asks for a long one.
_LONGEST = 600
# Frames of a sound that is traced, and of a longer one; more than any kernel over frames needs.
_FRAMES = (12, 31)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Examples:
    """What a model's graphs take.

    Args:
        traced: An example of `SAMPLES` samples, in which no size is another's.
        shapes: The shape of each input by name, -1 for what is free: the batch, and the length.
        probes: What the graphs are compared with torch on: `traced` first, then other lengths and paddings.
        settings: What the networks are called with besides.
        shortest: The least length that networks take, where it is free and more than 1.
    """

    traced: Tensors
    shapes: Mapping[str, tuple[int, ...]]
    probes: tuple[Tensors, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    shortest: int | None = None

    @property
    def dtypes(self) -> dict[str, str]:
        """The dtype of each input by name: `float32` or `int64`."""
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.traced.items()}

    @property
    def has_free_length(self) -> bool:
        """Whether samples are of any length; their features have it as their second dimension."""
        return any(-1 in shape[1:] for shape in self.shapes.values())

    def given(self, inputs: Tensors) -> dict[str, Any]:
        """What a route is called with."""
        return {**inputs, **self.settings}


def takes_of(config: PWLConfig) -> str:
    """What a model takes: `images`, or what its teacher's family says, such as `token ids`."""
    if (config.task or FIRST_TASK) == FIRST_TASK:
        return "images"
    return family_of(config.teacher_config).takes or "inputs of its own"


def check_exported(config: PWLConfig) -> None:
    """Refuse a model that takes what no example is made of.

    Args:
        config: The model's.

    Raises:
        SaveError: With what it takes.
    """
    if (task := config.task or FIRST_TASK) not in TASKS:
        raise SaveError(f"models of {', '.join(TASKS)} are exported, this one is of {task}; nothing was written")
    for network in (config.teacher_config, config.student_config):
        if reason := family_of(network).not_exported:
            raise SaveError(f"a {network.model_type} is not exported: {reason}; nothing was written")
    if takes_of(config) not in ("images", *_MADE):
        raise SaveError(
            f"models of images, texts and sounds are exported, this one ({config.teacher_config.model_type}) takes "
            f"{takes_of(config)}; nothing was written"
        )


def examples_of_arrays(main_input: str, shape: tuple[int, ...]) -> Examples:
    """Samples of one shape, such as images (C, H, W)."""
    traced = {main_input: torch.randn(SAMPLES, *shape, generator=_generator())}
    return Examples(traced, {main_input: (-1, *shape)}, (traced,))


def examples_of(config: PWLConfig, main_input: str, padding_side: str) -> Examples:
    """Of a model of texts or sounds.

    Args:
        config: The model's.
        main_input: The name of its main input.
        padding_side: Where texts are padded: at the other side encoders would look at padding.

    Raises:
        SaveError: If it takes something else.
    """
    check_exported(config)
    return _MADE[takes_of(config)](config, main_input, padding_side)


def _texts(config: PWLConfig, main_input: str, padding_side: str) -> Examples:
    """Token ids of several lengths, padded, and as short as a text can be."""
    networks = (config.teacher_config, config.student_config)
    most = min(config.max_tokens or _LONGEST, _LONGEST)
    windows = [getattr(n, name, None) or 0 for n in networks for name in ("sliding_window", "local_attention")]
    long = min(max(21, *(window + 5 for window in windows)), most)
    has_types = any((getattr(network, "type_vocab_size", None) or 0) > 1 for network in networks)
    generator, padding = _generator(), config.teacher_config.pad_token_id

    def batch(*lengths: int) -> Tensors:
        length = min(max(lengths), most)
        mask = _mask(lengths, length)
        mask = mask.flip(1) if padding_side == "left" else mask
        ids = torch.randint(config.teacher_config.vocab_size, mask.shape, generator=generator)
        if padding is not None:
            # A text's own tokens are none of padding, by which decoders find its end.
            ids = torch.where(ids == padding, (padding + 1) % config.teacher_config.vocab_size, ids)
            ids = torch.where(mask == 0, padding, ids)
        found = {main_input: ids, "attention_mask": mask}
        return found | ({"token_type_ids": (torch.arange(length) * 2 >= length) * mask} if has_types else {})

    traced = batch(9, 5)
    probes = (traced, batch(long, 7, 3), batch(1))
    # A classifier has no use for a cache.
    return Examples(traced, dict.fromkeys(traced, (-1, -1)), probes, {"use_cache": False})


def _waveforms(config: PWLConfig, main_input: str, _: str) -> Examples:
    """Waveforms of several lengths, of so many frames as the networks' convolutions make of them."""
    network = config.teacher_config

    def samples(frames: int) -> int:
        length = frames
        for kernel, stride in zip(reversed(network.conv_kernel), reversed(network.conv_stride), strict=True):
            length = (length - 1) * stride + kernel
        return length

    shortest = samples(getattr(network, "squeeze_factor", 1))
    made = _sounds(main_input, [samples(frames) for frames in _FRAMES], ())
    alone = {
        main_input: torch.randn(1, shortest, generator=_generator()),
        "attention_mask": torch.ones(1, shortest).long(),
    }
    return replace(made, probes=(*made.probes, alone), shortest=shortest)


def _features_of_speech(config: PWLConfig, main_input: str, _: str) -> Examples:
    return _sounds(main_input, _FRAMES, (config.teacher_config.feature_projection_input_dim,))


def _spectrograms(config: PWLConfig, main_input: str, _: str) -> Examples:
    return examples_of_arrays(main_input, (config.teacher_config.max_length, config.teacher_config.num_mel_bins))


def _log_mel_spectrograms(config: PWLConfig, main_input: str, _: str) -> Examples:
    network = config.teacher_config
    return examples_of_arrays(main_input, (network.num_mel_bins, 2 * network.max_source_positions))


def _sounds(main_input: str, lengths: Sequence[int], size: tuple[int, ...]) -> Examples:
    """Sounds of two lengths, each in a batch with a shorter one; silence is 0."""
    generator, probes = _generator(), []
    for length in lengths:
        mask = _mask((length, int(0.7 * length)), length)
        sounds = torch.randn(*mask.shape, *size, generator=generator)
        probes.append({main_input: sounds * mask.reshape(*mask.shape, *[1] * len(size)), "attention_mask": mask})
    return Examples(probes[0], {main_input: (-1, -1, *size), "attention_mask": (-1, -1)}, tuple(probes))


def _mask(lengths: Sequence[int], length: int) -> torch.Tensor:
    """(B, length): 1 for what is a sample's own, 0 for padding behind it."""
    return (torch.arange(length) < torch.tensor(lengths)[:, None]).long()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


_MADE: Mapping[str, Callable[[PWLConfig, str, str], Examples]] = {
    "token ids": _texts,
    "waveforms": _waveforms,
    "features of speech": _features_of_speech,
    "spectrograms": _spectrograms,
    "log-mel spectrograms": _log_mel_spectrograms,
}
