"""Later stages follow the state that the model is in, whatever torch or transformers did to it meanwhile."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from pwl_hf import PWLForImageClassification, Sources, StageError
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_config, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]


def grow(model: PWLForImageClassification) -> PWLForImageClassification:
    model.set_stage("teacher")
    return model


# --- dtype and device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "to"])
@torch.no_grad()
def test_a_cast_between_stages_is_followed_by_later_ones(load: Load, model_type: str, cast: str) -> None:
    model = load(model_type, stage=1)
    dtype = {"bfloat16": torch.bfloat16, "half": torch.float16, "double": torch.float64, "to": torch.bfloat16}[cast]
    model.to(dtype) if cast == "to" else getattr(model, cast)()
    direct = load(model_type, stage=1, dtype=dtype)
    images = tiny_images(model_type).to(dtype)
    for stage in (1, 2, "teacher", 0):
        model.set_stage(stage)
        direct.set_stage(stage)
        tensors = [*model.parameters(), *model.buffers(), *(t for s in model.statistics.values() for t in s.values())]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}
        assert torch.equal(model(images).logits, direct(images).logits)


def test_the_meta_device_between_stages_is_followed(load: Load) -> None:
    model = load("swin").to("meta")
    model.set_stage(2)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}


def test_device_map_of_one_device_is_where_everything_goes(load: Load) -> None:
    model = load("resnet", device_map={"": "cpu"})
    model.set_stage(2)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert model.device == torch.device("cpu")


# --- attention --------------------------------------------------------------------------------------------------


def attention_configs(network: nn.Module) -> list[object]:
    return [m.config for m in network.modules() if hasattr(m, "config") and not hasattr(m, "base_model")]


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "swin"])
@torch.no_grad()
def test_set_attn_implementation_is_followed_by_later_blocks(load: Load, model_type: str) -> None:
    model, images = load(model_type), tiny_images(model_type)
    assert model.config.student_config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    for stage in (1, "teacher", 0):
        model.set_stage(stage)
        for role in ("teacher", "student"):
            config, found = getattr(model.config, f"{role}_config"), attention_configs(getattr(model, role))
            assert config._attn_implementation == "eager"
            assert all(c is config for c in found), "a layer has a config of its own, which no setting reaches"
        eager = load(model_type, stage=stage, attn_implementation="eager")
        assert torch.equal(model(images).logits, eager(images).logits)
    model.set_attn_implementation("sdpa")
    sdpa = load(model_type, stage=0)
    assert torch.equal(model(images).logits, sdpa(images).logits)


def test_an_unknown_attention_is_refused(load: Load) -> None:
    with pytest.raises(ValueError, match="sparse_magic"):
        load("vit", attn_implementation="sparse_magic")


def test_attention_that_a_family_lacks_is_refused_as_transformers_does(load: Load, tmp_path: Path) -> None:
    with pytest.raises((ValueError, ImportError)) as plain:
        AutoModelForImageClassification.from_config(
            tiny_config("swin").teacher_config, attn_implementation="flex_attention"
        )
    with pytest.raises(type(plain.value), match=r"Swin.*flex"):
        grow(load("swin", attn_implementation="flex_attention"))


# --- modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_train_mode_is_followed_by_the_student_and_never_by_the_teacher(load: Load, model_type: str) -> None:
    model = load(model_type)
    assert not any(m.training for m in model.modules()), "from_pretrained gives eval mode"
    model.train()
    for stage in (1, 3, 2):
        model.set_stage(stage)
        assert not any(m.training for m in model.teacher.modules())
        assert model.encoders[str(stage)].training
        resident = [m for m in model.student.modules() if type(m).__name__ != "Vacant"]
        assert all(m.training for m in resident)
    model.eval().set_stage(1)
    assert not any(m.training for m in model.modules())


def test_a_frozen_model_stays_frozen(load: Load) -> None:
    model = load("vit")
    assert all(p.requires_grad for p in model.student.parameters())
    model.requires_grad_(False)
    for stage in (1, 2, "teacher", 0, 1):
        model.set_stage(stage)
        assert not any(p.requires_grad for p in model.parameters()), stage


def test_a_frozen_model_that_became_the_teacher_at_once_comes_back_frozen(load: Load) -> None:
    model = load("vit")
    model.requires_grad_(False)
    model.set_stage("teacher")
    model.set_stage(0)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_trainable_model_gets_trainable_converters_and_a_frozen_teacher(load: Load) -> None:
    model = load("vit")
    for stage in (1, 2, "teacher", 3, 0):
        model.set_stage(stage)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != name.startswith("teacher."), name


@pytest.mark.parametrize("resident", [True, False])
def test_requires_grad_true_on_the_model_leaves_the_teacher_frozen(load: Load, resident: bool) -> None:
    model = tiny_model("vit") if resident else load("vit", stage=2)
    assert model.requires_grad_(False) is model
    model.requires_grad_(True)
    for stage in (3, "teacher", 1):
        model.set_stage(stage)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad != name.startswith("teacher."), name


# --- gradient checkpointing -------------------------------------------------------------------------------------


def gradients(model: PWLForImageClassification, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(images, labels=torch.tensor([0, 1])).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2", "swin"])
def test_gradient_checkpointing_is_followed_and_changes_no_loss_and_no_gradient(load: Load, model_type: str) -> None:
    images = tiny_images(model_type)
    plain, checkpointing = load(model_type).train(), load(model_type).train()
    checkpointing.activation_checkpointing_enable()
    assert checkpointing.is_activation_checkpointing
    for stage in (0, 2, 3, 1, 0):
        plain.set_stage(stage)
        checkpointing.set_stage(stage)
        layers = [m for m in checkpointing.student.modules() if type(m).__name__.endswith("Layer")]
        assert layers
        assert all(m.gradient_checkpointing for m in layers)
        torch.manual_seed(3)
        loss, grads = gradients(plain, images)
        torch.manual_seed(3)
        loss_again, grads_again = gradients(checkpointing, images)
        assert torch.equal(loss, loss_again)
        assert grads.keys() == grads_again.keys()
        assert grads
        assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
    checkpointing.activation_checkpointing_disable()
    checkpointing.set_stage(2)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in checkpointing.student.modules())


def test_the_older_name_of_checkpointing_works_too(load: Load) -> None:
    model = load("vit")
    with pytest.warns(FutureWarning, match="activation_checkpointing_enable"):
        model.gradient_checkpointing_enable()
    assert model.is_activation_checkpointing


def test_checkpointing_recomputes_activations(load: Load) -> None:
    model = load("vit").train()
    model.activation_checkpointing_enable()
    calls = []
    model.student.vit.layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, tiny_images("vit"))
    assert len(calls) == 2


@pytest.mark.parametrize("model_type", ["resnet", "pwl_vgg"])
def test_gradient_checkpointing_raises_where_the_family_has_none(load: Load, model_type: str) -> None:
    model = load(model_type)
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        model.activation_checkpointing_enable()
    assert not model.is_activation_checkpointing


# --- copies -----------------------------------------------------------------------------------------------------


def copies() -> list:
    return [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle"),
    ]


@pytest.mark.parametrize("copy_of", copies())
@pytest.mark.parametrize("model_type", ["vit", "swin", "resnet"])
@torch.no_grad()
def test_a_copy_answers_and_grows_like_the_original(load: Load, model_type: str, copy_of: Callable) -> None:
    images = tiny_images(model_type)
    model = load(model_type, stage=1)
    other = copy_of(model)
    assert torch.equal(other(images).logits, model(images).logits)
    assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}
    other.set_stage("teacher")
    assert (model.stage, other.stage) == (1, 4)
    model.set_stage("teacher")
    assert torch.equal(other(images).logits, model(images).logits)
    assert other.config is not model.config
    assert all(c is other.config.teacher_config for c in attention_configs(other.teacher))


@pytest.mark.parametrize("copy_of", copies())
@torch.no_grad()
def test_a_copy_of_a_resident_model_shares_nothing(copy_of: Callable) -> None:
    model, images = tiny_model("resnet"), tiny_images("resnet", 4)
    model.estimate_statistics(images, "TSSS")
    before = {mask: model(images, sources=mask).logits for mask in map(str, Sources.all(4))}
    other = copy_of(model)
    for mask, logits in before.items():
        assert torch.equal(other(images, sources=mask).logits, logits), mask
    for parameter in other.parameters():
        parameter.zero_()
    other.estimate_statistics(images * 3, "TSSS")
    other.train()(images)
    for mask, logits in before.items():
        assert torch.equal(model(images, sources=mask).logits, logits), mask


def test_a_pickle_holds_no_token(saved: Callable[[str], Path]) -> None:
    model = PWLForImageClassification.from_pretrained(saved("vit"), token="hf_secret_of_mine")
    assert b"hf_secret_of_mine" not in pickle.dumps(model)


# --- building from a config -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_auto_class_from_config_builds_a_resident_model(model_type: str) -> None:
    model = AutoModelForImageClassification.from_config(tiny_config(model_type)).eval()
    assert isinstance(model, PWLForImageClassification)
    images = tiny_images(model_type)
    for mask in map(str, Sources.all(4)):
        assert torch.isfinite(model(images, sources=mask).logits).all()
    for stage in range(1, 5):
        assert model.load_next_stage() == stage
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_from_config_takes_dtype_and_attention() -> None:
    model = AutoModelForImageClassification.from_config(
        tiny_config("vit"), dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for role in ("teacher", "student"):
        assert getattr(model, role).config._attn_implementation == "eager"
    assert torch.get_default_dtype() == torch.float32


def test_from_config_is_determined_by_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(PWLForImageClassification(tiny_config("swin")).state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert all(torch.isfinite(tensor).all() for tensor in states[0].values())


def test_converters_are_initialised_as_linear_layers_are() -> None:
    model = PWLForImageClassification(tiny_config("vit"))
    assert sorted(model.encoders) == sorted(model.decoders) == ["1", "2", "3"]
    for converter, d_in, d_out in ((model.encoders["1"], 24, 16), (model.decoders["1"], 16, 24)):
        assert converter.weight.shape == (d_out, d_in)
        assert 0 < converter.weight.abs().max() <= d_in**-0.5
        assert 0 < converter.bias.abs().max() <= d_in**-0.5


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_trained_bookkeeping_of_batch_norm_comes_back(load: Load, model_type: str) -> None:
    model = load(model_type, stage="teacher")
    counted = [t for n, t in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counted
    assert all(t.dtype == torch.int64 and t.item() == 7 for t in counted)


# --- steps that do not exist ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [-1, 5, 1.0, "student", True, None, "3"])
@pytest.mark.parametrize("resident", [True, False])
def test_a_stage_that_does_not_exist_is_refused(load: Load, stage: object, resident: bool) -> None:
    model = tiny_model("vit") if resident else load("vit")
    with pytest.raises(ValueError, match="stage must be a whole number from 0 to 4"):
        model.set_stage(stage)
    assert model.stage == 0


@pytest.mark.parametrize("resident", [True, False])
def test_there_is_no_stage_after_the_last_and_none_after_a_mask(load: Load, resident: bool) -> None:
    model = tiny_model("vit") if resident else load("vit")
    model.set_stage("teacher")
    with pytest.raises(StageError, match="last stage, 4"):
        model.load_next_stage()
    model.set_sources("STSS")
    assert model.stage is None
    with pytest.raises(StageError, match=r"'STSS' is no stage.*set_stage"):
        model.load_next_stage()
    assert model.sources == "STSS"


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_stages_come_whole_within_another_default_device(load: Load, family: str) -> None:
    model, images = load(family), tiny_images(family)
    expected = load(family, stage=1)(images).logits
    with torch.device("meta"):
        model.load_next_stage()
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert torch.equal(model(images).logits, expected)
