"""What users would do instead, written as they would write it: from a folder or a Hub to something that answers.

Each is loaded with `from_pretrained` and called with images; those that change their weights later have `num_stages`
and `load_next_stage`, as a PWL model has. None compares hashes; a PWL model does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from benchmarks.speed.measures.alternatives_forms import BF16, BOTH, INT8, MODULES, STUDENT_CONFIG, dequantised
from pwl_hf.modeling.families.registry import family_of


class _Way:
    """What answers.

    Args:
        model: The network.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        """The network's answer."""
        return self.model(pixel_values)


class Accelerate(_Way):
    """The teacher by `load_checkpoint_and_dispatch`, on the CPU.

    It reads tensors by the names of the modules, which in a ViT's files on the Hub are others: the file was saved with
    accelerate in mind.
    """

    @classmethod
    def from_pretrained(cls, source: str, cache_dir: str | None = None) -> Self:
        """Load the teacher."""
        # Here, for the imports of the other ways are timed too.
        from accelerate import init_empty_weights, load_checkpoint_and_dispatch

        config = AutoConfig.from_pretrained(source, cache_dir=cache_dir)
        with init_empty_weights():
            model = family_of(config).model_class()(config)
        path = _fetched(source, MODULES, cache_dir)
        return cls(load_checkpoint_and_dispatch(model, path, device_map={"": "cpu"}).eval())


class Both(_Way):
    """Teacher and student from one file, as the research code has them: both are made, and filled before any answer.

    The research code reads a pickle; this is safetensors.
    """

    num_stages: ClassVar[int] = 1

    def __init__(self, model: PreTrainedModel, teacher: PreTrainedModel) -> None:
        super().__init__(model)
        self._teacher = teacher

    @classmethod
    def from_pretrained(cls, source: str, cache_dir: str | None = None) -> Self:
        """Load both; the student answers."""
        configs = {
            "student": AutoConfig.from_pretrained(_fetched(source, STUDENT_CONFIG, cache_dir)),
            "teacher": AutoConfig.from_pretrained(source, cache_dir=cache_dir),
        }
        held = load_file(_fetched(source, BOTH, cache_dir))
        networks = {
            part: cls._network(
                config, {n.removeprefix(f"{part}."): t for n, t in held.items() if n.startswith(f"{part}.")}
            )
            for part, config in configs.items()
        }
        return cls(networks["student"], networks["teacher"])

    @staticmethod
    def _network(config: Any, state: dict[str, torch.Tensor]) -> PreTrainedModel:
        """A network with copies of these tensors."""
        model: PreTrainedModel = family_of(config).model_class()(config)
        model.load_state_dict(state)
        model.eval()
        return model

    def load_next_stage(self) -> None:
        """The teacher answers from now on."""
        self.model = self._teacher


class BothMapped(Both):
    """The same with care: no weights are made first, and the tensors are pages of the file, read once they are used."""

    @staticmethod
    def _network(config: Any, state: dict[str, torch.Tensor]) -> PreTrainedModel:
        return _filled(config, state)


class _TeacherTwice(_Way, ABC):
    """The teacher from small weights first, and from its own afterwards, which take the place of the first.

    Args:
        model: The network with its small weights.
        source: Where it is from.
        cache_dir: The Hub cache.
    """

    num_stages: ClassVar[int] = 1

    def __init__(self, model: PreTrainedModel, source: str, cache_dir: str | None) -> None:
        super().__init__(model)
        self._source, self._cache_dir = source, cache_dir

    @classmethod
    def from_pretrained(cls, source: str, cache_dir: str | None = None) -> Self:
        """Load the teacher from its small weights."""
        return cls(cls._load_small(source, cache_dir), source, cache_dir)

    @staticmethod
    @abstractmethod
    def _load_small(source: str, cache_dir: str | None) -> PreTrainedModel:
        """The network from its small weights."""

    def load_next_stage(self) -> None:
        """Load the teacher in full precision."""
        self.model = type(self.model).from_pretrained(self._source, cache_dir=self._cache_dir)


class Int8First(_TeacherTwice):
    """The teacher from int8 weights, which are fp32 again before it answers; its own weights afterwards."""

    @staticmethod
    def _load_small(source: str, cache_dir: str | None) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(source, cache_dir=cache_dir)
        return _filled(config, dequantised(load_file(_fetched(source, INT8, cache_dir))))


class Bf16First(_TeacherTwice):
    """The teacher from bfloat16 weights, which are fp32 again before it answers; its own weights afterwards."""

    @staticmethod
    def _load_small(source: str, cache_dir: str | None) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(source, subfolder=BF16, cache_dir=cache_dir)
        network = family_of(config).model_class()
        model: PreTrainedModel = network.from_pretrained(
            source, subfolder=BF16, dtype=torch.float32, cache_dir=cache_dir
        )
        return model


def _fetched(source: str, file: str, cache_dir: str | None) -> str:
    """A file's path, downloaded if the source is no folder."""
    if Path(source).is_dir():
        return str(Path(source, file))
    return hf_hub_download(source, file, cache_dir=cache_dir)


def _filled(config: Any, state: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A network with these tensors, made without any others."""
    with torch.device("meta"):
        model: PreTrainedModel = family_of(config).model_class()(config)
    model.load_state_dict(state, assign=True)
    model.eval()
    return model
