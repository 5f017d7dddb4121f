"""A network whose layers differ in what only their code tells: cheap to trace, and made to be taken for one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput

from pwl_hf import Boundary, Family, Features, PWLForImageClassification, register_family
from pwl_hf.modeling.families.registry import FAMILIES, OWN_CONFIGS

NAME = "test-odd-net"
SIZE = 8
_ONES, _ROWS = np.ones(8, dtype=np.float32), np.arange(8, dtype=np.float32)


@strict
class OddNetConfig(PreTrainedConfig):
    """`layers` names the kind of each layer."""

    model_type = NAME

    layers: str = "plain plain"
    width: int = 8
    image_size: int | None = SIZE


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class OddLayer(nn.Module):
    """A layer of one of these kinds, each over the same two modules with the same shapes."""

    def __init__(self, width: int, kind: str, place: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width, eps=0.5 if kind == "eps" else 1e-6), nn.Linear(width, width)
        self.dropout = nn.Dropout(0.3 if kind == "dropout" else 0.1)
        self.activation = torch.sin if kind == "activation" else torch.tanh
        self.extra: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.whole: Any = True
        self.array = _ROWS if kind == "array" else _ONES
        self._gain = 2.0 if kind == "hidden" else 1.0
        self.layer_idx = place if kind == "place" else 0
        # For `_init_weights`, and of no other use.
        self.layer_index = place
        self.register_buffer("order", torch.arange(width), persistent=kind == "index")
        self.register_buffer("scale", torch.ones(()), persistent=False)
        if kind == "callable":
            self.extra = torch.neg
        if kind == "number":
            self.whole = 1
        if kind == "forward":
            self.forward = partial(_negated, self)  # type: ignore[method-assign]
        if kind == "hook":
            self.register_forward_hook(lambda module, given, found: -found)
        if kind == "pre-hook":
            self.register_forward_pre_hook(lambda module, given: (-given[0],))
        if kind == "hook-inside":
            self.linear.register_forward_hook(lambda module, given, found: -found)
        if kind == "parametrized":
            parametrize.register_parametrization(self.linear, "weight", Doubled())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return _layer(self, hidden)


def _layer(layer: OddLayer, hidden: torch.Tensor) -> torch.Tensor:
    found = layer.dropout(layer.activation(layer.linear(layer.norm(hidden))))
    found = found[..., layer.order] * layer.scale * layer._gain * torch.from_numpy(layer.array)
    # True and 1 are equal, and are not the same.
    found = found if layer.whole is True else -found
    found = layer.extra(found) if layer.extra is not None else found
    return hidden + found * (1 + layer.layer_idx)


def _negated(layer: OddLayer, hidden: torch.Tensor) -> torch.Tensor:
    return -_layer(layer, hidden)


class OddNetForImageClassification(PreTrainedModel):
    config_class = OddNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OddNetConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.width, 4, 4)
        kinds = config.layers.split()
        self.layers = nn.ModuleList(OddLayer(config.width, kind, place) for place, kind in enumerate(kinds))
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OddLayer):
            kind = self.config.layers.split()[module.layer_index]
            init.copy_(module.order, torch.arange(self.config.width).flip(0))
            init.constant_(module.scale, 2.0 if kind == "buffer" else 1.0)

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        features = _embed(self.patches, {"pixel_values": pixel_values})
        for place, layer in enumerate(self.layers):
            features = _unit(self.config, place, layer)(features)
        return ImageClassifierOutput(logits=_classify(self.classifier, features))


class OddNetFamily(Family):
    model_type = NAME

    def model_class(self) -> type[PreTrainedModel]:
        return OddNetForImageClassification

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return (len(config.layers.split()),)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        return Boundary(config.width, "patches of 4", channels_first=False)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("patches",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        return (f"layers.{unit}",)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("classifier",)

    def embedder(self, config: PreTrainedConfig, get: Callable[[str], nn.Module]) -> Callable[..., Features]:
        return partial(_embed, get("patches"))

    def unit(self, config: PreTrainedConfig, unit: int, get: Callable[[str], nn.Module]) -> Callable[..., Features]:
        return _unit(config, unit, get(f"layers.{unit}"))

    def head(self, config: PreTrainedConfig, get: Callable[[str], nn.Module]) -> Callable[..., torch.Tensor]:
        return partial(_classify, get("classifier"))


# Longer than what numpy and torch print of an array.
_LONG = np.ones(2000, dtype=np.float32)
_OTHER = np.where(np.arange(2000) == 1000, -1, _LONG).astype(np.float32)


def _unit(config: PreTrainedConfig, place: int, layer: nn.Module) -> Callable[[Features], Features]:
    """What a family may give: a partial over modules and arguments of any kind, or a closure."""
    kind = config.layers.split()[place]
    if kind == "closure":
        return lambda features: Features(-layer(features.tensor))
    if kind == "argument":
        return partial(_run, layer, gain=-1.0)
    if kind == "long-argument":
        return partial(_run, layer, factors=torch.from_numpy(_OTHER))
    if kind == "other-long-argument":
        return partial(_run, layer, factors=torch.from_numpy(_LONG))
    if kind == "nested":
        return partial(_run_inner, partial(_run, layer, gain=3.0))
    if kind == "other-nested":
        return partial(_run_inner, partial(_run, layer, gain=-3.0))
    if kind == "beside":
        return partial(_run_pair, (layer, 2.0))
    if kind == "other-beside":
        return partial(_run_pair, (layer, -2.0))
    return partial(_run, layer)


def _embed(patches: nn.Module, inputs: Mapping[str, Any]) -> Features:
    return Features(patches(inputs["pixel_values"]).flatten(2).transpose(1, 2))


def _run(layer: nn.Module, features: Features, gain: float = 1.0, factors: torch.Tensor | None = None) -> Features:
    found = layer(features.tensor) * gain
    return Features(found if factors is None else found * factors.min())


def _run_inner(inner: Callable[[Features], Features], features: Features) -> Features:
    return inner(features)


def _run_pair(pair: tuple[nn.Module, float], features: Features) -> Features:
    return Features(pair[0](features.tensor) * pair[1])


def _classify(classifier: nn.Module, features: Features) -> torch.Tensor:
    return classifier(features.tensor.mean(1))


@contextmanager
def registered() -> Iterator[None]:
    register_family(NAME, OddNetFamily(), config_class=OddNetConfig)
    try:
        yield
    finally:
        del FAMILIES[NAME], OWN_CONFIGS[NAME]


def odd_model(
    teacher: str = "plain plain", student: str = "plain plain", num_stages: int = 2, num_labels: int = 5, **kwargs: Any
) -> PWLForImageClassification:
    """A joined model of random weights whose teacher has layers of these kinds; its student is of the same size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [
            OddNetForImageClassification(OddNetConfig(layers=layers, num_labels=num_labels)).eval()
            for layers in (teacher, student)
        ]
        for network in networks:
            for parameter in network.parameters():
                parameter.data.normal_(0, 0.4)
        return PWLForImageClassification.from_teacher_student(*networks, num_stages=num_stages, **kwargs).eval()


def odd_images(n: int = 2) -> torch.Tensor:
    """(n, 3, 8, 8)."""
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
