"""What prepares a network's samples: its own processor, tokenizer or feature extractor, or a plain one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Siglip2ImageProcessorPil,
    ViTImageProcessorPil,
    Wav2Vec2FeatureExtractor,
)
from transformers.utils import IMAGE_PROCESSOR_NAME
from transformers.utils.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from pwl_hf.data.processing import OF_PATCHES, channels_of, check_channels, process, upright
from pwl_hf.data.words import joins_words
from pwl_hf.modeling.families.base import PATCHES
from pwl_hf.modeling.families.registry import family_of
from pwl_hf.modeling.task_names import TASKS
from pwl_hf.opening import WORDS_TASK
from pwl_hf.training.networks.network_arguments import TaskArguments

logger = logging.getLogger(__name__)

# Samples a second, where nothing says otherwise: what networks of speech are trained on.
_RATE = 16000


def processing_for(task: str, name: str | None, config: PreTrainedConfig, arguments: TaskArguments) -> Any:
    """What prepares a network's samples.

    Args:
        task: The task.
        name: Folder or Hub id of the network, if it has one.
        config: The network's config.
        arguments: What is said for a network that has none.

    Raises:
        ValueError: If the network has one and the options are for one that has none, if there is none to be had, or if
            it does not fit the network.
    """
    if TASKS[task].samples == "images":
        return image_processor(name, config, arguments.image_size)
    if TASKS[task].samples == "texts":
        return tokenizer_for(name, config, arguments.tokenizer, of_words=task == WORDS_TASK)
    return feature_extractor(name, config, arguments.sampling_rate)


def image_processor(name: str | None, config: PreTrainedConfig, image_size: int | None) -> BaseImageProcessor:
    """What prepares a network's images: its own processor, or else a plain one of its family.

    The plain one resizes every image to a square and normalises it as the family's published networks do; images of
    other channels than RGB to values from -1 to 1. For a network of patches it cuts as many as there are positions.

    Args:
        name: Folder or Hub id of the network, if it has one.
        config: The network's config.
        image_size: Pixels a side, for a network that has no processor; the config's own by default.

    Raises:
        ValueError: If the network has a processor and `image_size` is another, or its channels are, or it makes what
            the network does not take; if there is no size, or no image has so many channels.
    """
    check_channels(channels_of(config))
    takes_patches = family_of(config).takes == PATCHES
    if name is not None and _has(name, IMAGE_PROCESSOR_NAME):
        own: BaseImageProcessor = AutoImageProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
        # Before training, rather than at its first image.
        made = process([upright(Image.new("RGB", (64, 64)), channels_of(config))], own, channels_of(config))
        if takes_patches != (made.keys() >= set(OF_PATCHES)):
            raise ValueError(
                f"{name!r} has an image processor ({type(own).__name__}) that makes {', '.join(made)}, which a "
                f"{config.model_type} does not take: save the one that it was trained with"
            )
        if image_size is not None and not _gives(own, image_size):
            raise ValueError(f"image_size={image_size}, but {name!r} has an image processor of its own: leave it out")
        return own
    if takes_patches:
        return _of_patches(config)
    size = image_size if image_size is not None else getattr(config, "image_size", None)
    if size is None:
        raise ValueError(f"networks of model_type {config.model_type!r} take images of any size: give image_size")
    height, width = (size, size) if isinstance(size, int) else size
    if channels_of(config) != 3:
        mean, std = [IMAGENET_STANDARD_MEAN[0]] * channels_of(config), [IMAGENET_STANDARD_STD[0]] * channels_of(config)
    elif config.model_type == "vit":
        mean, std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    else:
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return ViTImageProcessorPil(
        size={"height": height, "width": width},
        do_convert_rgb=channels_of(config) == 3,
        image_mean=mean,
        image_std=std,
    )


def _of_patches(config: PreTrainedConfig) -> BaseImageProcessor:
    seeing, channels = getattr(config, "vision_config", config), channels_of(config)
    return Siglip2ImageProcessorPil(
        patch_size=seeing.patch_size,
        max_num_patches=seeing.num_patches,
        do_convert_rgb=channels == 3,
        image_mean=[IMAGENET_STANDARD_MEAN[0]] * channels,
        image_std=[IMAGENET_STANDARD_STD[0]] * channels,
    )


def tokenizer_for(
    name: str | None, config: PreTrainedConfig, given: str | None, *, of_words: bool
) -> PreTrainedTokenizerBase:
    """What prepares a network's texts: its own tokenizer, or the one that is given.

    Args:
        name: Folder or Hub id of the network, if it has one.
        config: The network's config.
        given: Folder or Hub id of a tokenizer, for a network that has none.
        of_words: Whether it reads lists of words; a byte-level one then puts a blank before each.

    Raises:
        ValueError: If there is none, if both are there, or if it has more tokens than the network.
    """
    own = name is not None and any(_has(name, file) for file in TASKS[WORDS_TASK].files[:2])
    if own and given is not None:
        raise ValueError(f"tokenizer={given}, but {name!r} has a tokenizer of its own: leave it out")
    source = name if own else given
    if source is None:
        raise ValueError(f"{name or 'the network'} has no tokenizer: give tokenizer, a folder or Hub id that has one")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    if of_words and joins_words(tokenizer):
        logger.info("the tokenizer of %s puts a blank before each word: add_prefix_space", source)
        tokenizer = AutoTokenizer.from_pretrained(source, add_prefix_space=True)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, and the network vocab_size {config.vocab_size}: "
            "give the one that it was made for"
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"the tokenizer of {source} pads with token {tokenizer.pad_token_id}, and the network's pad_token_id is "
            f"{config.pad_token_id}: give both the same"
        )
    return tokenizer


def feature_extractor(name: str | None, config: PreTrainedConfig, sampling_rate: int | None) -> Any:
    """What prepares a network's sounds: its own feature extractor, or else a plain one of what it takes.

    Args:
        name: Folder or Hub id of the network, if it has one.
        config: The network's config.
        sampling_rate: Samples a second, for a network that has none; 16,000 by default.

    Raises:
        ValueError: If the network has one of another rate, or none and takes neither waveforms nor spectrograms.
    """
    if name is not None and _has(name, "preprocessor_config.json"):
        own = AutoFeatureExtractor.from_pretrained(name)
        if sampling_rate is not None and own.sampling_rate != sampling_rate:
            raise ValueError(
                f"sampling_rate={sampling_rate}, but the feature extractor of {name!r} takes {own.sampling_rate}: "
                "leave it out"
            )
        return own
    rate, takes = sampling_rate or _RATE, getattr(family_of(config), "takes", "")
    if takes == "waveforms":
        # Padding counts where norms go over the whole sound: those networks were trained without a mask.
        masks = getattr(config, "feat_extract_norm", "group") == "layer"
        return Wav2Vec2FeatureExtractor(sampling_rate=rate, return_attention_mask=masks)
    if takes == "spectrograms":
        return ASTFeatureExtractor(sampling_rate=rate, num_mel_bins=config.num_mel_bins, max_length=config.max_length)
    raise ValueError(
        f"{name or 'the network'} has no feature extractor, and networks of model_type {config.model_type!r} have no "
        "plain one: give a network that has its own"
    )


def _has(name: str, file: str) -> bool:
    """Whether a folder or a repository of the Hub has a file.

    Asked for first: transformers raises the same for a file that is not there and a Hub that does not answer.
    """
    if Path(name).is_dir():
        return Path(name, file).is_file()
    try:
        return bool(hf_hub_download(name, file))
    except RemoteEntryNotFoundError:
        return False


def _gives(processor: BaseImageProcessor, image_size: int) -> bool:
    sizes = (getattr(processor, "crop_size", None), getattr(processor, "size", None))
    size = next((dict(found) for found in sizes if found is not None), {})
    return set(size.values()) == {image_size}
