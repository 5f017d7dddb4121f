"""What was changed since it was loaded is never silently lost."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.testing._internal.two_tensor import TwoTensor

from pwl_hf import PWLConfig, PWLForImageClassification, SaveError, StageError
from tests.tiny import EACH_FAMILY, tiny_images, tiny_model

Load = Callable[..., PWLForImageClassification]
Model = PWLForImageClassification
Caplog = pytest.LogCaptureFixture


def by_copy(model: Model) -> None:
    with torch.no_grad():
        model.student.vit.layers[0].mlp.fc1.bias.add_(1e-6)


def by_data(model: Model) -> None:
    model.student.vit.layers[0].mlp.fc1.bias.data[0] = 5


def by_new_data(model: Model) -> None:
    model.student.vit.layers[0].mlp.fc1.bias.data = torch.zeros_like(model.student.vit.layers[0].mlp.fc1.bias)


def by_new_parameter(model: Model) -> None:
    bias = model.student.vit.layers[0].mlp.fc1.bias
    model.student.vit.layers[0].mlp.fc1.bias = torch.nn.Parameter(bias.detach() + 1)


def by_optimizer(model: Model) -> None:
    optimizer = torch.optim.SGD(model.student.vit.layers[0].parameters(), lr=0.1)
    model(tiny_images("vit"), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()


def by_load_state_dict(model: Model) -> None:
    state = {name: tensor + 1 for name, tensor in model.student.vit.layers[0].state_dict().items()}
    model.student.vit.layers[0].load_state_dict(state, assign=True)


@pytest.mark.parametrize("change", [by_copy, by_data, by_new_data, by_new_parameter, by_optimizer, by_load_state_dict])
def test_releasing_a_changed_block_is_refused_by_name(load: Load, change: Callable[[Model], None]) -> None:
    model, images = load("vit"), tiny_images("vit")
    change(model)
    answer, names = model(images).logits, list(model.state_dict())
    for move in (model.load_next_stage, lambda: model.set_stage("teacher"), lambda: model.set_sources("TSTS")):
        with pytest.raises(StageError, match=r"student block 1 was changed .* sources 'SSSS'.*keep_all=True"):
            move()
        assert (model.stage, list(model.state_dict())) == (0, names)
        assert torch.equal(model(images).logits, answer)
    model.set_sources("STTT")
    assert model.sources == "STTT", "what keeps the block is no loss"
    with pytest.raises(StageError, match="student block 1"):
        model.set_stage("teacher")
    model.set_stage(0)
    assert torch.equal(model(images).logits, answer)


def by_parametrization(model: Model) -> None:
    nn.utils.parametrizations.weight_norm(model.student.vit.layers[0].mlp.fc1)


def by_pruning(model: Model) -> None:
    # The weight that is left is what it was: only how it is stored differs.
    prune.custom_from_mask(layer := model.student.vit.layers[0].mlp.fc1, "weight", torch.ones_like(layer.weight))


def by_a_further_tensor(model: Model) -> None:
    model.student.vit.layers[0].register_buffer("scale", torch.ones(1))


def by_another_module(model: Model) -> None:
    model.student.vit.layers[0].mlp.activation_fn = nn.ReLU()


def by_a_wrapper(model: Model) -> None:
    model.student.vit.layers[0].mlp = nn.Sequential(model.student.vit.layers[0].mlp)


def by_a_tensor_of_another_kind(model: Model) -> None:
    layer = model.student.vit.layers[0].mlp.fc1
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()))


BY_STRUCTURE = [by_parametrization, by_pruning, by_a_further_tensor, by_another_module, by_a_wrapper]


@pytest.mark.parametrize("change", [*BY_STRUCTURE, by_a_tensor_of_another_kind])
def test_what_the_config_does_not_describe_is_neither_released_nor_left_out_of_a_save(
    load: Load, tmp_path: Path, change: Callable[[Model], None]
) -> None:
    model = load("vit")
    change(model)
    answer, names = model(tiny_images("vit")).logits, list(model.state_dict())
    for move in (model.load_next_stage, lambda: model.set_stage("teacher"), model.stream_stages):
        with pytest.raises(StageError, match=r"student block 1 was changed .*\(.*layers\.0.*\).*keep_all=True"):
            move()
        assert (model.stage, list(model.state_dict())) == (0, names)
    with pytest.raises(SaveError, match=r"not what its config describes.*of the student, .*layers\.0"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert torch.equal(model(tiny_images("vit")).logits, answer)


def test_dynamic_quantisation_is_neither_released_nor_saved(load: Load, tmp_path: Path) -> None:
    model = torch.ao.quantization.quantize_dynamic(load("vit"), {nn.Linear})
    assert model(tiny_images("vit")).logits.shape == (2, 5)
    with pytest.raises(StageError, match=r"student block 1 was changed .*it lacks the tensor"):
        model.load_next_stage()
    with pytest.raises(SaveError, match="save before quantising"):
        model.save_pretrained(tmp_path / "new")


def test_a_changed_converter_module_and_tensors_outside_the_networks_are_not_left_out_of_a_save(
    load: Load, tmp_path: Path
) -> None:
    model = load("vit", stage=1)
    model.encoders["1"].scale = nn.Parameter(torch.ones(1))
    with pytest.raises(StageError, match=r"encoder 1 was changed .*'scale'"):
        model.load_next_stage()
    with pytest.raises(SaveError, match="of encoder 1, it holds the tensor 'scale'"):
        model.save_pretrained(tmp_path)
    model = load("vit")
    model.temperature = nn.Parameter(torch.ones(1))
    with pytest.raises(SaveError, match="it holds the tensor 'temperature'"):
        model.save_pretrained(tmp_path)


def test_a_state_dict_that_is_not_the_models_is_refused(load: Load, tmp_path: Path) -> None:
    model = load("vit")
    bias = torch.arange(5.0)
    for given, message in (
        ({"module.student.classifier.bias": bias}, "'module.student.classifier.bias', which is no tensor"),
        ({"student.classifier.bias": bias[:3]}, r"'student.classifier.bias' of shape \[3\], the model's is \[5\]"),
        ({"teacher.classifier.bias": bias}, "'teacher.classifier.bias', which is no tensor of what is resident"),
    ):
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "new", state_dict=given)
    assert not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path, state_dict={"student.classifier.bias": bias})
    assert torch.equal(PWLForImageClassification.from_pretrained(tmp_path).student.classifier.bias, bias)


def test_a_model_without_values_is_not_saved(load: Load, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"student\.\S+ cannot be saved: it has no values, it is on the meta device"):
        load("vit").to("meta").save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("model_type", ["resnet", "pwl_vgg"])
def test_batch_norm_buffers_count_as_a_change(load: Load, model_type: str) -> None:
    model, images = load(model_type), tiny_images(model_type, 4)
    with torch.no_grad():
        model.train()(images)
    model.eval()
    with pytest.raises(StageError, match="student block 1 was changed"):
        model.load_next_stage()
    counted = load(model_type)
    next(b for n, b in counted.student.named_buffers() if n.endswith("num_batches_tracked")).add_(1)
    with pytest.raises(StageError, match="student block 1 was changed"):
        counted.load_next_stage()


def test_a_changed_converter_and_a_changed_teacher_block_are_refused(load: Load) -> None:
    model = load("vit", stage=1)
    model.encoders["1"].bias.data += 1
    with pytest.raises(StageError, match="encoder 1 was changed"):
        model.load_next_stage()
    assert model.stage == 1
    model = load("vit", stage=1)
    model.teacher.vit.layers[0].mlp.fc1.bias.data += 1
    model.load_next_stage()
    with pytest.raises(StageError, match="teacher block 1 was changed"):
        model.set_stage(0)
    assert model.stage == 2


def test_the_sign_of_a_zero_is_a_change(load: Load, tmp_path: Path) -> None:
    original = tiny_model("vit")
    original.student.vit.layers[0].mlp.fc1.bias.data.zero_()
    original.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    model.student.vit.layers[0].mlp.fc1.bias.data.neg_()
    with pytest.raises(StageError, match="student block 1 was changed"):
        model.load_next_stage()


def test_nan_weights_that_were_loaded_are_no_change(tmp_path: Path) -> None:
    original = tiny_model("vit")
    original.student.vit.layers[0].mlp.fc1.bias.data.fill_(float("nan"))
    original.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    assert model.load_next_stage() == 1


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_is_no_change(load: Load, model_type: str, dtype: torch.dtype) -> None:
    model = load(model_type).to(dtype)
    for stage in (1, "teacher", 0):
        model.set_stage(stage)
    loaded = load(model_type, dtype=dtype)
    loaded.set_stage("teacher")


def test_a_forward_a_backward_and_a_mode_are_no_change(load: Load) -> None:
    model = load("vit").train()
    model(tiny_images("vit"), labels=torch.tensor([0, 1])).loss.backward()
    model.eval()
    assert model.load_next_stage() == 1


def test_saved_changes_may_be_released(load: Load, tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    model, images = PWLForImageClassification.from_pretrained(tmp_path), tiny_images("vit")
    by_data(model)
    changed = model(images).logits
    model.save_pretrained(tmp_path)
    model.set_stage("teacher")
    model.set_stage(0)
    assert torch.equal(model(images).logits, changed)
    again = PWLForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(images).logits, changed)


def test_resident_models_reroute_whatever_was_changed(load: Load) -> None:
    images = tiny_images("vit")
    for model in (load("vit", keep_all=True), tiny_model("vit")):
        by_data(model)
        changed = model(images).logits
        for stage in (1, "teacher", 0):
            model.set_stage(stage)
        assert torch.equal(model(images).logits, changed)


def test_estimated_statistics_are_not_lost_by_changes_of_stage(load: Load) -> None:
    model, images = load("resnet", stage=2), tiny_images("resnet", 4)
    plain = model(images).logits
    model.estimate_statistics(images)
    estimated = model(images).logits
    assert not torch.equal(plain, estimated)
    for stage in (4, 0, 2):
        model.set_stage(stage)
    assert torch.equal(model(images).logits, estimated)


# --- What is put on a block, rather than into it --------------------------------------------------------------------


def by_forward_hook(model: Model) -> None:
    model.student.vit.layers[0].mlp.register_forward_hook(lambda module, args, output: None)


def by_forward_pre_hook(model: Model) -> None:
    model.student.vit.embeddings.register_forward_pre_hook(lambda module, args: None)


def by_backward_hook(model: Model) -> None:
    model.student.vit.layers[0].register_full_backward_hook(lambda module, args, output: None)


def by_another_forward(model: Model) -> None:
    layer = model.student.vit.layers[0].attention
    layer.forward = partial(type(layer).forward, layer)


@pytest.mark.parametrize("put", [by_forward_hook, by_forward_pre_hook, by_backward_hook, by_another_forward])
def test_what_is_gone_with_a_block_is_warned_of(load: Load, put: Callable[[Model], None], caplog: Caplog) -> None:
    model = load("vit")
    put(model)
    with caplog.at_level(logging.WARNING, "pwl_hf"):
        model.load_next_stage()
        assert re.search("student block 1 is released, and with it a hook, or a forward, .*keep_all=True", caplog.text)
        caplog.clear()
        model.load_next_stage()
    assert not caplog.text


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_what_transformers_puts_on_blocks_is_not_warned_of(load: Load, family: str, caplog: Caplog) -> None:
    model, images = load(family), tiny_images(family)
    model.student(images, output_hidden_states=True)
    model.register_forward_hook(lambda module, args, output: None)
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    with caplog.at_level(logging.WARNING, "pwl_hf"):
        model(images, output_hidden_states=True)
        model.set_stage("teacher")
        model.set_stage(0)
    assert not caplog.text


# --- What is changed in the config, rather than in the model --------------------------------------------------------


def other_activation(config: PWLConfig) -> None:
    config.student_config.hidden_act = "relu"


def other_width(config: PWLConfig) -> None:
    config.student_config.intermediate_size *= 2


def fewer_layers(config: PWLConfig) -> None:
    config.student_config.num_hidden_layers -= 1


def other_labels(config: PWLConfig) -> None:
    config.num_labels = 7


def other_labels_of_the_student(config: PWLConfig) -> None:
    config.student_config.num_labels = 7


EDITS = [other_activation, other_width, fewer_layers, other_labels, other_labels_of_the_student]


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("keep_all", [True, False])
def test_a_config_that_describes_another_network_is_not_saved(
    load: Load, edit: Callable[[PWLConfig], None], keep_all: bool, tmp_path: Path
) -> None:
    model = load("vit", keep_all=keep_all)
    edit(model.config)
    with pytest.raises(SaveError, match=r"not what its config describes.*or changed in the config"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_names_and_rates_of_a_config_may_be_changed(load: Load, tmp_path: Path) -> None:
    model = load("vit")
    model.config.id2label = {i: f"class {i}" for i in range(5)}
    model.config.student_config.hidden_dropout_prob = 0.5
    model.save_pretrained(tmp_path)
    assert PWLForImageClassification.from_pretrained(tmp_path).config.id2label[3] == "class 3"
