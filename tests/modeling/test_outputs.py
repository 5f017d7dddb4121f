"""What a forward pass returns, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutput

from pwl_hf import PWLForImageClassification, StageError
from tests.tiny import EACH_FAMILY, FAMILIES, INTERPOLATING, NUM_LABELS, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]

# The hidden states of a plain network that are the block outputs of `tiny_model`: index in its
# `hidden_states` for each of the four blocks, by role.
_PLAIN_INDEX = {
    "vit": {"teacher": (2, 4, 6, 8), "student": (1, 2, 3, 4)},
    "deit": {"teacher": (2, 4, 6, 8), "student": (1, 2, 3, 4)},
    "dinov2": {"teacher": (2, 4, 6, 8), "student": (1, 2, 3, 4)},
    "resnet": {"teacher": (1, 2, 3, 4), "student": (1, 2, 3, 4)},
    "convnext": {"teacher": (1, 2, 3, 4), "student": (1, 2, 3, 4)},
    "swin": {"teacher": (1, 2, 3, 4), "student": (1, 2, 3, 4)},
    "pwl_vgg": {"teacher": (1, 2, 5, 7), "student": (0, 1, 3, 4)},
}


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("role", ["teacher", "student"])
@torch.no_grad()
def test_hidden_states_are_the_block_outputs(model_type: str, role: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type)
    plain = getattr(model, role)(images, output_hidden_states=True).hidden_states
    output = model(images, output_hidden_states=True, sources={"teacher": "TTTT", "student": "SSSS"}[role])
    assert len(output.hidden_states) == 4
    for ours, index in zip(output.hidden_states, _PLAIN_INDEX[model_type][role], strict=True):
        theirs = plain[index]
        if index == len(plain) - 1 and not torch.equal(ours, theirs):
            # Some networks give their last hidden state after the final LayerNorm.
            theirs, ours = (functional.layer_norm(t, t.shape[-1:]) for t in (theirs, ours))
            assert ours.shape == theirs.shape
            continue
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_hidden_states_have_the_width_of_their_own_block(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type)
    ends = {
        role: model(images, output_hidden_states=True, sources=letter * 4).hidden_states
        for role, letter in (("teacher", "T"), ("student", "S"))
    }
    mixed = model(images, output_hidden_states=True, sources="TTSS").hidden_states
    assert [t.shape for t in mixed] == [
        *(t.shape for t in ends["teacher"][:2]),
        *(t.shape for t in ends["student"][2:]),
    ]
    assert torch.equal(mixed[0], ends["teacher"][0])


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_output_is_that_of_an_image_classifier(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type, 3)
    output = model(images)
    assert isinstance(output, ImageClassifierOutput)
    assert output.logits.shape == (3, NUM_LABELS)
    assert output.loss is None
    assert output.hidden_states is None


def test_return_dict_false_gives_a_tuple() -> None:
    model, images, labels = tiny_model("vit"), tiny_images("vit"), torch.tensor([1, 2])
    output = model(images, labels=labels, output_hidden_states=True)
    loss, logits, hidden = model(images, labels=labels, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert len(hidden) == 4
    assert len(model(images, return_dict=False)) == 1


def test_the_configs_choices_are_the_defaults() -> None:
    model, images = tiny_model("vit"), tiny_images("vit")
    model.config.output_hidden_states = True
    assert len(model(images).hidden_states) == 4
    assert model(images, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model(images), tuple)


def test_loss_is_the_cross_entropy_of_the_labels() -> None:
    model, images, labels = tiny_model("vit"), tiny_images("vit", 3), torch.tensor([0, 4, 2])
    for stage in (0, 2, 4):
        model.set_stage(stage)
        output = model(images, labels=labels)
        torch.testing.assert_close(output.loss, functional.cross_entropy(output.logits, labels))


@pytest.mark.parametrize(
    ("problem_type", "labels", "expected"),
    [
        ("single_label_classification", torch.tensor([1, 3]), functional.cross_entropy),
        ("multi_label_classification", torch.eye(2, NUM_LABELS), functional.binary_cross_entropy_with_logits),
        ("regression", torch.ones(2, NUM_LABELS), functional.mse_loss),
    ],
)
def test_loss_follows_the_problem_type(problem_type: str, labels: torch.Tensor, expected: Callable) -> None:
    model, images = tiny_model("vit"), tiny_images("vit")
    model.config.problem_type = problem_type
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, expected(output.logits, labels))


@pytest.mark.parametrize("model_type", INTERPOLATING)
@torch.no_grad()
def test_interpolate_pos_encoding_equals_the_plain_networks(model_type: str) -> None:
    model = tiny_model(model_type)
    size = 64 if model_type == "swin" else 24
    images = torch.randn(2, 3, size, size)
    for role, mask in (("student", "SSSS"), ("teacher", "TTTT")):
        plain = getattr(model, role)(images, interpolate_pos_encoding=True).logits
        assert torch.equal(model(images, interpolate_pos_encoding=True, sources=mask).logits, plain)
    assert model(images, interpolate_pos_encoding=True, sources="TTSS").logits.shape == (2, NUM_LABELS)


def test_another_size_without_interpolation_raises_as_the_family_does() -> None:
    with pytest.raises(ValueError, match="doesn't match model"):
        tiny_model("vit")(torch.randn(1, 3, 24, 24))


@pytest.mark.parametrize("model_type", sorted(set(FAMILIES) - set(INTERPOLATING)))
def test_interpolate_pos_encoding_elsewhere_is_refused_by_name(model_type: str) -> None:
    model, images = tiny_model(model_type), tiny_images(model_type)
    with pytest.raises(ValueError, match=rf"interpolate_pos_encoding=True does not apply to model_type '{model_type}'"):
        model(images, interpolate_pos_encoding=True)
    assert torch.equal(model(images, interpolate_pos_encoding=False).logits, model(images).logits)


@pytest.mark.parametrize("sources", ["", "TTS", "TTSSS", "ttss", "TTXS", "T T S", 3])
def test_malformed_sources_are_refused(sources: object) -> None:
    model = tiny_model("vit")
    for call in (lambda: model(tiny_images("vit"), sources=sources), lambda: model.set_sources(sources)):
        with pytest.raises(ValueError, match="sources mask"):
            call()
    assert model.sources == "SSSS"


def test_sources_that_are_not_resident_are_refused_and_change_nothing(load: Load) -> None:
    model, images = load("vit"), tiny_images("vit")
    before, names = model(images).logits, set(model.state_dict())
    with pytest.raises(StageError, match=r"sources 'TSSS' needs .* not resident: call set_sources\('TSSS'\)"):
        model(images, sources="TSSS")
    assert (model.sources, model.stage, set(model.state_dict())) == ("SSSS", 0, names)
    assert torch.equal(model(images).logits, before)


def test_a_vacant_model_refuses_to_answer() -> None:
    model = PWLForImageClassification(tiny_model("vit").config, vacant=True)
    for call in (lambda: model(tiny_images("vit")), lambda: model.stage, lambda: model.load_next_stage()):
        with pytest.raises(StageError, match="vacant"):
            call()


def test_pixel_values_of_another_dtype_are_cast_as_the_family_does() -> None:
    model = tiny_model("vit").to(torch.bfloat16)
    assert model(tiny_images("vit")).logits.dtype == torch.bfloat16
    assert torch.equal(model(tiny_images("vit")).logits, model.student(tiny_images("vit")).logits)
