"""A family of the user's own: a network that transformers lacks is joined, saved, loaded and grown like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from pwl_hf import Boundary, Family, Features, PWLForImageClassification, RepositoryError, Sources, register_family
from pwl_hf.modeling.families.registry import FAMILIES, OWN_CONFIGS
from tests.children import python
from tests.modeling.types import AUDIO, IMAGES, TEXT


@strict
class PatchNetConfig(PreTrainedConfig):
    model_type = "test-patch-net"

    width: int = 8
    depth: int = 4
    patch: int = 4


class PatchNetLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.linear(self.norm(hidden)).tanh()


class PatchNetForImageClassification(PreTrainedModel):
    config_class = PatchNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PatchNetConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.layers = nn.ModuleList(PatchNetLayer(config.width) for _ in range(config.depth))
        self.classifier = nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        hidden = self.patches(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = self.classifier(hidden.mean(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)


class PatchNetFamily(Family):
    model_type = "test-patch-net"

    def model_class(self) -> type[PreTrainedModel]:
        return PatchNetForImageClassification

    def depths(self, config: PreTrainedConfig) -> tuple[int, ...]:
        return (config.depth,)

    def boundary(self, config: PreTrainedConfig, units: int) -> Boundary:
        return Boundary(config.width, f"patches of {config.patch}", channels_first=False)

    def embedder_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("patches",)

    def unit_paths(self, config: PreTrainedConfig, unit: int) -> tuple[str, ...]:
        return (f"layers.{unit}",)

    def head_paths(self, config: PreTrainedConfig) -> tuple[str, ...]:
        return ("classifier",)

    def embedder(self, config: PreTrainedConfig, get: Callable[[str], nn.Module]) -> Callable[..., Features]:
        return partial(_embed, get("patches"))

    def unit(self, config: PreTrainedConfig, unit: int, get: Callable[[str], nn.Module]) -> Callable[..., Features]:
        return partial(_run, get(f"layers.{unit}"))

    def head(self, config: PreTrainedConfig, get: Callable[[str], nn.Module]) -> Callable[..., torch.Tensor]:
        return partial(_classify, get("classifier"))


def _embed(patches: nn.Module, inputs: Mapping[str, Any]) -> Features:
    return Features(patches(inputs["pixel_values"]).flatten(2).transpose(1, 2))


def _run(layer: nn.Module, features: Features) -> Features:
    return Features(layer(features.tensor))


def _classify(classifier: nn.Module, features: Features) -> torch.Tensor:
    return classifier(features.tensor.mean(1))


@pytest.fixture
def registered() -> Iterator[None]:
    register_family("test-patch-net", PatchNetFamily(), config_class=PatchNetConfig)
    yield
    del FAMILIES["test-patch-net"], OWN_CONFIGS["test-patch-net"]


def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(0)
    return (
        PatchNetForImageClassification(PatchNetConfig(width=12, depth=8, num_labels=5)).eval(),
        PatchNetForImageClassification(PatchNetConfig(width=8, depth=4, num_labels=5)).eval(),
    )


@pytest.mark.usefixtures("registered")
@torch.no_grad()
def test_a_network_that_transformers_lacks_is_joined_saved_loaded_and_grown(tmp_path: Path) -> None:
    images, (teacher, student) = torch.randn(2, 3, 16, 16), pair()
    expected = [network(images).logits for network in (student, teacher)]
    joined = PWLForImageClassification.from_teacher_student(teacher, student, num_stages=4)
    answers = {mask: joined(images, sources=mask).logits for mask in map(str, Sources.all(4))}
    assert torch.equal(answers["SSSS"], expected[0])
    assert torch.equal(answers["TTTT"], expected[1])
    joined.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    for stage in range(5):
        model.set_stage(stage)
        assert torch.equal(model(images).logits, answers["T" * stage + "S" * (4 - stage)])
    with PWLForImageClassification.from_pretrained(tmp_path, stream=True).stream as stream:
        pass
    assert stream.stage == 4
    plain = PatchNetForImageClassification.from_pretrained(tmp_path, subfolder="teacher")
    assert torch.equal(plain(images).logits, expected[1])
    again = PWLForImageClassification.from_teacher_student(tmp_path / "teacher", student)
    assert torch.equal(again(images, sources="TTTT").logits, expected[1])


@pytest.mark.usefixtures("registered")
def test_a_name_that_is_taken_and_what_is_no_family_are_refused() -> None:
    for taken in ("vit", "test-patch-net"):
        with pytest.raises(ValueError, match=f"model_type '{taken}' has a family already, .*Family: give yours"):
            register_family(taken, PatchNetFamily())
    with pytest.raises(TypeError, match="must be a Family, got ABCMeta"):
        register_family("test-other", PatchNetFamily)
    assert "test-other" not in FAMILIES


def test_without_its_family_a_repository_says_what_is_missing(tmp_path: Path) -> None:
    register_family("test-patch-net", PatchNetFamily(), config_class=PatchNetConfig)
    try:
        PWLForImageClassification.from_teacher_student(*pair()).save_pretrained(tmp_path)
    finally:
        del FAMILIES["test-patch-net"], OWN_CONFIGS["test-patch-net"]
    with pytest.raises(RepositoryError, match=r"'test-patch-net' cannot be cut into blocks.*register_family adds"):
        PWLForImageClassification.from_pretrained(tmp_path)


def test_the_families_of_the_library_need_no_registration() -> None:
    code = "import pwl_hf.modeling.families.registry as r; from pwl_hf import PWLConfig; print(sorted(r.FAMILIES))"
    done = python(code)
    assert done.stdout.strip() == str(sorted(["pwl_vgg", *IMAGES, *TEXT, *AUDIO]))
