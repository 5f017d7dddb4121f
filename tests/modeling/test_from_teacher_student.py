"""Joining two networks that exist already."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import FAMILIES as REGISTERED
from tests.tiny import EACH_FAMILY, tiny_images, tiny_pair

join = PWLForImageClassification.from_teacher_student


def networks(model_type: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedModel]:
    torch.manual_seed(seed)
    made = [REGISTERED[model_type].model_class()(config).eval() for config in tiny_pair(model_type)]
    with torch.no_grad():
        for network in made:
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return made[0], made[1]


def put_a_head_in(network: PreTrainedModel, width: int) -> nn.Module:
    """A head made by hand and trained, as in any tutorial."""
    network.classifier = nn.Linear(width, network.config.num_labels)
    with torch.no_grad():
        network.classifier.weight.fill_(0.25)
        network.classifier.bias.copy_(torch.arange(network.config.num_labels))
    return network.classifier


def put_a_layer_in(network: PreTrainedModel, width: int) -> nn.Module:
    layer = type(network.vit.layers[0])(network.config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    network.vit.layers[1] = layer
    return layer


def put_a_norm_in(network: PreTrainedModel, width: int) -> nn.Module:
    network.vit.layernorm = nn.LayerNorm(width, network.config.layer_norm_eps)
    with torch.no_grad():
        network.vit.layernorm.weight.fill_(3)
    return network.vit.layernorm


@pytest.mark.parametrize("put_in", [put_a_head_in, put_a_layer_in, put_a_norm_in])
@torch.no_grad()
def test_what_was_put_into_a_network_after_it_was_made_stays(put_in: Callable[..., nn.Module], tmp_path: Path) -> None:
    teacher, student = networks("vit")
    for network in (teacher, student):
        put_in(network, network.config.hidden_size).eval()
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (teacher, student)]
    expected = [m(tiny_images("vit")).logits for m in (teacher, student)]
    models = [join(teacher, student), PWLForImageClassification(join(*networks("vit")).config, teacher, student)]
    for model in models:
        for network, state in zip((model.teacher, model.student), before, strict=True):
            assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
        for redraw in (model.init_weights, model.initialize_weights, model.post_init):
            redraw()  # what transformers calls at the end of each constructor, and after loading
    models[0].save_pretrained(tmp_path)
    for stage, logits in (("teacher", expected[0]), (0, expected[1])):
        assert torch.equal(
            PWLForImageClassification.from_pretrained(tmp_path, stage=stage)(tiny_images("vit")).logits, logits
        )


def with_other_labels(network: PreTrainedModel) -> None:
    network.classifier = nn.Linear(network.config.hidden_size, 3)


def with_a_deep_head(network: PreTrainedModel) -> None:
    network.classifier = nn.Sequential(nn.Dropout(), network.classifier)


def with_a_parametrization(network: PreTrainedModel) -> None:
    nn.utils.parametrizations.weight_norm(network.classifier)


def with_a_further_tensor(network: PreTrainedModel) -> None:
    network.vit.scale = nn.Parameter(torch.ones(1))


def with_less(network: PreTrainedModel) -> None:
    network.vit.layernorm = nn.Identity()


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_other_labels, r"'classifier.weight' has shape \[3, \d+\], by its config \[5, \d+\]"),
        (with_a_deep_head, "it holds the tensor 'classifier.1.weight'"),
        (with_a_parametrization, "it holds the tensor 'classifier.parametrizations"),
        (with_a_further_tensor, "it holds the tensor 'vit.scale'"),
        (with_less, "it lacks the tensor 'vit.layernorm.weight'"),
    ],
)
def test_a_network_that_is_not_its_configs_is_refused_as_it_was(
    role: str, change: Callable[[PreTrainedModel], None], named: str
) -> None:
    pair = dict(zip(("teacher", "student"), networks("vit"), strict=True))
    change(pair[role])
    before = {r: {n: (t.clone(), t.requires_grad) for n, t in m.named_parameters()} for r, m in pair.items()}
    with pytest.raises(ValueError, match=f"the {role} is not what its config describes.*{named}"):
        join(pair["teacher"].train(), pair["student"], dtype="bfloat16")
    assert pair["teacher"].training
    for r, network in pair.items():
        for name, parameter in network.named_parameters():
            values, requires_grad = before[r][name]
            assert parameter.requires_grad == requires_grad
            assert parameter.dtype == values.dtype
            assert torch.equal(parameter, values)


@pytest.fixture
def saved_pair(tmp_path: Path) -> tuple[Path, Path]:
    for name, network in zip(("teacher", "student"), networks("vit"), strict=True):
        network.save_pretrained(tmp_path / name)
    return tmp_path / "teacher", tmp_path / "student"


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_given_models_are_used_and_not_copied_or_initialised_anew(model_type: str) -> None:
    teacher, student = networks(model_type)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (teacher, student)]
    images = tiny_images(model_type)
    expected = [m(images).logits for m in (teacher, student)]
    model = join(teacher, student, num_stages=4)
    assert model.teacher is teacher
    assert model.student is student
    assert model.config.teacher_config is teacher.config
    for network, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    assert torch.equal(model(images).logits, expected[1])
    model.set_stage("teacher")
    assert torch.equal(model(images).logits, expected[0])
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@torch.no_grad()
def test_paths_and_models_give_the_same(tmp_path: Path, model_type: str) -> None:
    teacher, student = networks(model_type)
    teacher.save_pretrained(tmp_path / "teacher")
    student.save_pretrained(tmp_path / "student")
    model, images = join(tmp_path / "teacher", str(tmp_path / "student")), tiny_images(model_type)
    assert model.num_stages == 4
    assert not model.training
    assert torch.equal(model(images).logits, student(images).logits)
    model.set_stage("teacher")
    assert torch.equal(model(images).logits, teacher(images).logits)
    mixed = join(teacher, tmp_path / "student")
    assert mixed.teacher is teacher


def test_a_joined_model_saves_and_loads(tmp_path: Path) -> None:
    model, images = join(*networks("resnet"), num_stages=2), tiny_images("resnet")
    model.set_stage(1)
    model.save_pretrained(tmp_path)
    loaded = PWLForImageClassification.from_pretrained(tmp_path, stage=1)
    assert torch.equal(loaded(images).logits, model(images).logits)
    assert loaded.config.teacher_config.architectures == ["ResNetForImageClassification"]


@pytest.mark.parametrize(
    ("kwargs", "stages"),
    [
        ({}, 4),
        ({"num_stages": 2}, 2),
        ({"num_blocks": 2}, 2),
        ({"teacher_cuts": [1, 8]}, 2),
        ({"student_cuts": [1, 2, 4]}, 3),
        ({"teacher_cuts": [3, 6, 8], "student_cuts": [1, 2, 4], "num_stages": 3}, 3),
    ],
)
def test_the_number_of_blocks_is_given_or_that_of_the_cuts(kwargs: dict, stages: int) -> None:
    model = join(*networks("vit"), **kwargs)
    assert model.num_stages == stages
    for name in ("teacher_cuts", "student_cuts"):
        assert getattr(model.config, name) == kwargs.get(name, getattr(model.config, name))


def test_the_number_of_blocks_is_given_once() -> None:
    with pytest.raises(TypeError, match="num_blocks and num_stages are one thing"):
        join(*networks("vit"), num_blocks=2, num_stages=2)


def test_modes_and_labels_are_the_networks() -> None:
    teacher, student = networks("vit")
    student.train()
    model = join(teacher.train(), student)
    assert model.training
    assert student.training
    assert not teacher.training
    assert model.config.id2label[3] == "dog"


# --- dtypes -----------------------------------------------------------------------------------------------------


def test_mixed_dtypes_are_refused_with_both_unless_one_is_given() -> None:
    teacher, student = networks("vit")
    teacher.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"bfloat16 for the teacher and torch.float32 for the student: give dtype="):
        join(teacher, student)
    assert (teacher.dtype, student.dtype) == (torch.bfloat16, torch.float32)
    model = join(teacher, student, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(tiny_images("vit")).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64, "auto", None])
def test_dtype_is_that_of_everything(saved_pair: tuple[Path, Path], dtype: object) -> None:
    model = join(*saved_pair, dtype=dtype)
    expected = {"bfloat16": torch.bfloat16, torch.float64: torch.float64}.get(dtype, torch.float32)
    assert {p.dtype for p in model.parameters()} == {expected}
    for stage in (1, 4):
        model.set_stage(stage)
        assert model(tiny_images("vit")).logits.dtype == expected


def test_converters_get_the_common_dtype() -> None:
    teacher, student = (network.to(torch.float16) for network in networks("vit"))
    model = join(teacher, student)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    with pytest.raises(ValueError, match="dtype must be a floating torch dtype"):
        join(teacher, student, dtype="int8")


# --- Arguments for the networks ---------------------------------------------------------------------------------


def test_prefixed_arguments_go_to_one_network_and_the_rest_to_both(saved_pair: tuple[Path, Path]) -> None:
    model = join(*saved_pair, student_attn_implementation="eager")
    assert model.teacher.config._attn_implementation == "sdpa"
    assert model.student.config._attn_implementation == "eager"
    model = join(*saved_pair, attn_implementation="eager", teacher_hidden_act="relu")
    assert model.teacher.config._attn_implementation == model.student.config._attn_implementation == "eager"
    assert (model.teacher.config.hidden_act, model.student.config.hidden_act) == ("relu", "gelu")


def test_num_labels_reset_both_heads(saved_pair: tuple[Path, Path]) -> None:
    model = join(*saved_pair, num_labels=7, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 7
    for mask in ("SSSS", "TTTT", "TTSS"):
        assert model(tiny_images("vit"), sources=mask).logits.shape == (2, 7)


def test_arguments_for_a_network_that_is_a_model_are_refused(saved_pair: tuple[Path, Path]) -> None:
    teacher, _ = networks("vit")
    with pytest.raises(TypeError, match="teacher_hidden_act was given, but the teacher is a model already"):
        join(teacher, saved_pair[1], teacher_hidden_act="relu")


@pytest.mark.parametrize("network", [None, 3, torch.nn.Linear(2, 2)])
def test_what_is_no_network_is_refused(network: object) -> None:
    teacher, _ = networks("vit")
    with pytest.raises(TypeError, match="the student must be a model, a folder or a Hub id"):
        join(teacher, network)


# --- Pairs that do not fit --------------------------------------------------------------------------------------


def test_a_family_with_other_tokens_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match=r"(?s)1 special token.*2 special token"):
        join(networks("vit")[0], networks("deit")[1])


def test_other_labels_are_refused() -> None:
    teacher, student = networks("vit")
    student.config.id2label = {0: "bee", 1: "ant", 2: "cat", 3: "dog", 4: "elk"}
    with pytest.raises(StrictDataclassError, match="label 0 is 'ant' for the teacher and 'bee' for the student"):
        join(teacher, student)


def test_another_number_of_labels_is_refused() -> None:
    teacher, student = networks("vit")
    config = ViTConfig(**(student.config.to_dict() | {"num_labels": 3, "id2label": None, "label2id": None}))
    with pytest.raises(StrictDataclassError, match="num_labels 5 for the teacher and 3 for the student"):
        join(teacher, ViTForImageClassification(config))


def test_grids_that_differ_are_refused_naming_both() -> None:
    teacher, student = networks("vit")
    config = ViTConfig(**(student.config.to_dict() | {"patch_size": 8}))
    with pytest.raises(StrictDataclassError, match=r"a 4x4 grid of 4x4 patches .* a 2x2 grid of 8x8 patches"):
        join(teacher, ViTForImageClassification(config))


def test_a_network_without_a_classification_head_is_refused() -> None:
    teacher, student = networks("vit")
    with pytest.raises(TypeError, match="the student must be a ViTForImageClassification, got ViTModel"):
        join(teacher, student.vit)


def test_another_kind_of_head_is_refused() -> None:
    teacher, student = networks("deit")
    with pytest.raises(TypeError, match=r"the teacher must be a DeiTForImageClassification, got DeiT.*WithTeacher"):
        join(DeiTForImageClassificationWithTeacher(teacher.config), student)


def test_the_same_model_twice_is_refused() -> None:
    teacher, _ = networks("vit")
    with pytest.raises(ValueError, match="the same model object"):
        join(teacher, teacher)


def test_a_refused_pair_is_left_as_it_was() -> None:
    teacher, student = networks("vit")
    with pytest.raises(StrictDataclassError):
        join(teacher, student, num_stages=9)
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.dtype == torch.float32
    assert not teacher.training


@torch.no_grad()
def test_a_joined_models_teacher_saves_as_a_plain_checkpoint(tmp_path: Path) -> None:
    model = join(*networks("swin"))
    model.teacher.save_pretrained(tmp_path)
    plain, images = AutoModelForImageClassification.from_pretrained(tmp_path), tiny_images("swin")
    assert torch.equal(plain(images).logits, model(images, sources="TTTT").logits)


@torch.no_grad()
def test_trained_converters_are_not_drawn_again(tmp_path: Path) -> None:
    joined = join(*networks("vit"))
    joined.encoders["1"] = copy.deepcopy(joined.encoders["1"])
    for parameter in joined.parameters():
        parameter.add_(1)
    joined.save_pretrained(tmp_path)
    for model in (joined, PWLForImageClassification.from_pretrained(tmp_path, keep_all=True)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for redraw in (model.init_weights, model.initialize_weights, model.post_init):
            redraw()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_dtype_auto_is_the_networks_own() -> None:
    pair = [network.to(torch.bfloat16) for network in networks("vit")]
    assert join(*pair, dtype="auto").dtype == torch.bfloat16
    pair[0].float()
    with pytest.raises(ValueError, match=r"must have one dtype, got torch.float32 for the teacher and torch.bfloat16"):
        join(*pair, dtype="auto")


def test_a_network_that_is_not_finite_is_told_from_a_cast_that_is_not() -> None:
    teacher, student = networks("vit")
    with torch.no_grad():
        student.classifier.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"student's 'classifier.weight' would hold NaN or infinity in torch.float16"):
        join(teacher, student, dtype=torch.float16)
    with torch.no_grad():
        student.classifier.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"student's 'classifier.weight' holds NaN or infinity: give a sound"):
        join(teacher, student, dtype=torch.float32)


def test_joining_within_the_meta_device_is_refused_unless_the_networks_are_there() -> None:
    pair = networks("vit")
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match=r"within torch.device\('meta'\)"):
            join(*pair)
        assert join(*networks("vit")).device.type == "meta"


def test_a_network_that_could_not_be_cut_into_shards_is_refused_when_joining() -> None:
    size = {"hidden_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "num_hidden_layers": 4}
    made = [Dinov2ForImageClassification(Dinov2Config(**size, use_swiglu_ffn=swiglu)) for swiglu in (True, False)]
    for teacher, student, role in ((*made, "teacher"), (*reversed(made), "student")):
        with pytest.raises(TypeError, match=f"the {role} could not be saved: .*cannot be cut into shards"):
            join(teacher, student)
