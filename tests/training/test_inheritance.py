"""A student's first weights from its teacher's layers: whole at equal widths, sliced where it is narrower."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaForCausalLM

from pwl_hf import PWLForImageClassification, VGGConfig
from pwl_hf.training.networks.building import derived_config, fresh, new_student
from pwl_hf.training.networks.inheritance import inherit
from pwl_hf.training.networks.network_arguments import NetworkArguments
from pwl_hf.training.networks.presets import PRESETS
from tests.modeling.driven import LanguageModel, config_of, driven_model, texts
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_images, tiny_model, tiny_pair

_ATTENTION = ({"hidden_size": 32, "num_attention_heads": 4}, {"hidden_size": 16, "num_attention_heads": 2})
_LEVELS = ({"hidden_sizes": [8, 12, 16, 24]}, {"hidden_sizes": [4, 6, 8, 12]})
_BETWEEN = ({"intermediate_size": 64}, {"intermediate_size": 32})
_STEM = ({"embedding_size": 8}, {"embedding_size": 4})
# A teacher's sizes, and those of a student of half the width; heads keep theirs.
_HALVES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "vit": [_ATTENTION, _BETWEEN],
    "deit": [_ATTENTION, _BETWEEN],
    "dinov2": [_ATTENTION],
    "resnet": [_LEVELS, _STEM],
    "convnext": [_LEVELS],
    "pwl_vgg": [_LEVELS],
    "swin": [({"embed_dim": 16, "num_heads": [2, 2, 4, 4]}, {"embed_dim": 8, "num_heads": [1, 1, 2, 2]})],
}


# Without shrinking: an example takes a tenth of a second, and is as small as any.
few = settings(max_examples=5, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def half_depth(model_type: str, num_stages: int = 4) -> PWLForImageClassification:
    teacher, _ = tiny_pair(model_type)
    torch.manual_seed(0)
    student = new_student(NetworkArguments(teacher="t", student_preset="half-depth"), teacher, None)
    return PWLForImageClassification.from_teacher_student(fresh(teacher), student, num_stages=num_stages).eval()


def half_width(model_type: str, seed: int = 0, **kwargs: Any) -> PWLForImageClassification:
    """A student as deep as its teacher and half as wide, of weights and statistics that are not trivial."""
    wide, narrow = ({name: size for sizes in _HALVES[model_type] for name, size in sizes[i].items()} for i in (0, 1))
    teacher = derived_config(tiny_pair(model_type)[0], wide | kwargs)
    torch.manual_seed(seed)
    networks = [fresh(teacher), fresh(derived_config(teacher, narrow))]
    for network in networks:
        stir(network)
    return PWLForImageClassification.from_teacher_student(*networks, num_stages=4).eval()


@torch.no_grad()
def stir(network: nn.Module) -> None:
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
            # No channel of a few images may be zero by chance.
            module.bias.uniform_(0.3, 1)


def batches(model_type: str, count: int = 64) -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": tiny_images(model_type, count)}]


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_every_module_of_half_the_depth_is_the_teacher_s(model_type):
    model = half_depth(model_type)
    for buffer in model.teacher.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    found = inherit(model)
    assert found.sliced == {}
    covered = set()
    for own, other in found.copied.items():
        for name, tensor in model.student.get_submodule(own).state_dict().items():
            assert torch.equal(tensor, before[f"{other}.{name}"])
            covered.add(f"{own}.{name}")
    assert covered == set(model.student.state_dict())
    # Copies, not the same tensors: training the student must not change the teacher.
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())


def test_choices_take_the_layers_that_they_say():
    layers = {
        how: [of for own, of in inherit(half_depth("vit", 2), how).copied.items() if ".layers." in own]
        for how in ("spread", "first")
    }
    assert layers == {
        "spread": [f"vit.layers.{i}" for i in (0, 2, 4, 6)],
        "first": [f"vit.layers.{i}" for i in (0, 1, 4, 5)],
    }


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_student_as_deep_as_its_teacher_answers_as_it_does_on_every_path(model_type):
    teacher, _ = tiny_pair(model_type)
    model = PWLForImageClassification.from_teacher_student(
        fresh(teacher), fresh(teacher.__class__(**teacher.to_dict()))
    )
    model.eval()
    images = tiny_images(model_type)
    with torch.no_grad():
        assert not torch.equal(model(images, sources="SSSS").logits, model(images, sources="TTTT").logits)
        inherit(model, "first", converters=True)
        for sources in ("SSSS", "TSSS", "STST"):
            assert torch.equal(model(images, sources=sources).logits, model(images, sources="TTTT").logits)


# What a student of half the width can take over in full: a teacher half of whose channels say nothing.


@torch.no_grad()
def silence(model: PWLForImageClassification, model_type: str, seed: int) -> None:
    """Let half of the teacher's heads, channels within units and, without layer norms, of each stream be zero."""
    draw = torch.Generator().manual_seed(seed)
    state = model.teacher.state_dict()

    def half(size: int, group: int = 1) -> torch.Tensor:
        groups = torch.randperm(size // group, generator=draw)[: size // group // 2]
        return (groups[:, None] * group + torch.arange(group)).flatten()

    if model_type in ("resnet", "pwl_vgg"):
        streams = {size: half(size) for size in (8, 12, 16, 24)}
        for name, tensor in state.items():
            # Gains and biases: those of a residual branch and its shortcut at the same places.
            if "normalization" in name and name.endswith(("weight", "bias")):
                tensor[streams[len(tensor)]] = 0
        return
    for name, tensor in state.items():
        if name.endswith(("fc1.weight", "fc1.bias")):
            dead = half(len(tensor))
            tensor[dead] = 0
            if name.endswith("weight"):
                state[name.replace("weight", "bias")][dead] = 0
        if name.endswith("v_proj.weight"):
            dead = half(len(tensor), 8)
            tensor[dead] = 0
            state[name.replace("weight", "bias")][dead] = 0


@torch.no_grad()
def confine(model: PWLForImageClassification, width: int, seed: int) -> None:
    """Let a transformer's stream lie in as many directions as a student of `width` can take over."""
    base = torch.randn(2 * width, width - 1, generator=torch.Generator().manual_seed(seed)).double()
    ones = torch.ones(2 * width, 1).double()
    directions = torch.linalg.qr(torch.cat([ones, base], 1)).Q[:, 1:]
    onto = directions @ directions.T
    for name, tensor in model.teacher.state_dict().items():
        if name.endswith(("o_proj.weight", "o_proj.bias", "fc2.weight", "fc2.bias", "projection.bias")):
            tensor.copy_(onto @ tensor)
        elif name.endswith("projection.weight"):
            tensor.copy_((onto @ tensor.flatten(1)).view_as(tensor))
        elif name.endswith(("_token", "position_embeddings")):
            tensor.copy_(tensor @ onto)
        elif name.endswith("lambda1"):
            tensor.fill_(0.5)


@torch.no_grad()
def assert_all_paths_alike(model: PWLForImageClassification, images: torch.Tensor) -> None:
    teacher = model(images, sources="TTTT").logits
    assert teacher.std(0).min() > 1e-3
    for sources in ("SSSS", "TSSS", "TTSS", "TTTS", "STTT", "SSTT", "STST"):
        torch.testing.assert_close(model(images, sources=sources).logits, teacher, atol=1e-8, rtol=0)


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
@few
@given(seed=st.integers(0, 1000))
def test_a_slice_of_a_teacher_whose_other_channels_are_zero_is_the_teacher(model_type, seed):
    model = half_width(model_type, seed)
    silence(model, model_type, seed)
    # The same images: a channel may be zero on all of some and not on others.
    images = tiny_images(model_type, 16).double()
    inherit(model.double(), batches=[{"pixel_values": images}], converters=True)
    assert_all_paths_alike(model, images)


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2"])
@few
@given(seed=st.integers(0, 1000))
def test_a_turned_slice_of_a_teacher_whose_stream_lies_in_as_few_directions_is_the_teacher(model_type, seed):
    model = half_width(model_type, seed, initializer_range=0.2, layer_norm_eps=1e-12)
    model.double()
    silence(model, model_type, seed)
    confine(model, 16, seed)
    found = inherit(model, batches=[{"pixel_values": tiny_images(model_type, 64).double()}], converters=True)
    assert list(found.slices.rotations) == ["stream 0"]
    assert_all_paths_alike(model, tiny_images(model_type, 4, seed=2).double())


def assert_unchanged(model: Any, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_a_narrower_student_is_sliced_and_its_teacher_unchanged(model_type, caplog):
    model = half_width(model_type)
    teacher = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    student = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    with caplog.at_level(logging.INFO, "pwl_hf.training"):
        found = inherit(model, batches=batches(model_type, 8), converters=True)
    assert not found.copied
    assert "sliced: " in caplog.text
    assert_unchanged(model.teacher, teacher)
    for name, tensor in model.student.state_dict().items():
        assert tensor.isfinite().all(), name
        # What is the teacher's may equal it: a number of batches, all layers' biases of zero.
        assert not torch.equal(tensor, student[name]) or name.endswith("num_batches_tracked"), name
    # The same images, the same student: nothing is drawn.
    again = half_width(model_type)
    inherit(again, batches=batches(model_type, 8), converters=True)
    assert_unchanged(again, dict(model.state_dict()))


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize("preset", PRESETS)
def test_students_of_every_preset_begin_as_slices(model_type, preset):
    teacher, _ = tiny_pair(model_type)
    student = new_student(NetworkArguments(teacher="t", student_preset=preset), teacher, None)
    model = PWLForImageClassification.from_teacher_student(fresh(teacher), student, num_stages=2).eval()
    found = inherit(model, batches=batches(model_type, 4), converters=True)
    assert bool(found.sliced) == (PRESETS[preset].width != 1)
    assert model(tiny_images(model_type), sources="TS").logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_a_slice_is_nearer_to_its_teacher_than_a_random_student(model_type):
    """The student's own features, brought back by the decoders, and the teacher's."""
    model = half_width(model_type)
    images = tiny_images(model_type, 16, seed=3)
    features = model(images, sources="TTTT", output_hidden_states=True).hidden_states

    def missed() -> list[float]:
        own = model(images, sources="SSSS", output_hidden_states=True).hidden_states
        found = []
        for boundary in (1, 2, 3):
            back = model.decoders[str(boundary)](own[boundary - 1])
            found.append(float((back - features[boundary - 1]).square().mean()))
        return found

    before = missed()
    inherit(model, batches=batches(model_type), converters=True)
    assert all(after < 0.9 * random for after, random in zip(missed(), before, strict=True))


@pytest.mark.parametrize("model_type", WITH_BATCH_NORM)
def test_kept_channels_keep_their_statistics(model_type):
    model = half_width(model_type)
    slices = inherit(model, batches=batches(model_type, 8)).slices
    mine, theirs = model.student.state_dict(), model.teacher.state_dict()
    seen = 0
    for name, tensor in mine.items():
        if name.endswith(("running_mean", "running_var")):
            (dim,) = slices.axes.tensors[name]
            assert torch.equal(tensor, theirs[name][slices.kept[dim.layout[0]]])
            seen += 1
        elif name.endswith("num_batches_tracked"):
            assert tensor == 7
    assert seen


def test_whole_heads_stay_with_their_queries_keys_values_and_outputs():
    model = half_width("vit")
    slices = inherit(model, batches=batches("vit")).slices
    for layer in range(8):
        prefix = f"vit.layers.{layer}.attention"
        heads = slices.kept[f"{prefix}.heads"]
        assert len(heads) == 2
        rows = (heads[:, None] * 8 + torch.arange(8)).flatten()
        turned = slices.rotations["stream 0"]
        for kind in ("q_proj", "k_proj", "v_proj"):
            gains = model.teacher.get_parameter(f"vit.layers.{layer}.layernorm_before.weight")
            weight = model.teacher.get_parameter(f"{prefix}.{kind}.weight")[rows] * gains
            expected = (weight.double() @ turned.back).float()
            torch.testing.assert_close(model.student.get_parameter(f"{prefix}.{kind}.weight"), expected)


def test_a_student_narrower_inside_its_units_alone_keeps_streams_and_identities():
    teacher = derived_config(tiny_pair("vit")[0], {"intermediate_size": 48})
    student = derived_config(teacher, {"intermediate_size": 16})
    model = PWLForImageClassification.from_teacher_student(fresh(teacher), fresh(student), num_stages=4)
    found = inherit(model, batches=batches("vit", 8), converters=True)
    assert set(found.sliced) == {f"vit.layers.{i}" for i in range(8)}
    assert set(found.copied) == {"vit.embeddings", "vit.layernorm", "classifier"}
    for converter in (*model.encoders.values(), *model.decoders.values()):
        assert torch.equal(converter.weight, torch.eye(24))
        assert not converter.bias.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_keeps_its_dtype(dtype):
    model = half_width("vit").to(dtype)
    inherit(model, batches=[{"pixel_values": tiny_images("vit", 8).to(dtype)}], converters=True)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
    assert model(tiny_images("vit").to(dtype)).logits.isfinite().all()


def test_a_teacher_in_training_goes_on_in_it_and_its_statistics_stay():
    model = half_width("resnet")
    model.teacher.train()
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    inherit(model, batches=batches("resnet", 8))
    assert model.teacher.training
    assert_unchanged(model.teacher, before)
    assert not any(module._forward_pre_hooks for module in model.teacher.modules())


# Networks of text, whose families are data.


@torch.no_grad()
@pytest.mark.parametrize(
    ("model_type", "options", "turned"),
    [
        ("bert", {}, False),
        ("mpnet", {}, False),
        ("llama", {}, True),
        ("llama", {"language_model": True}, True),
        ("llama", {"language_model": True, "tie_word_embeddings": True}, False),
    ],
)
def test_text_and_language_models_are_sliced_too(model_type, options, turned):
    model = driven_model(model_type, **options)
    found = inherit(model, batches=[texts()], converters=True)
    assert bool(found.slices.rotations) == turned
    logits, _ = model.run(texts(), "SSS")
    assert logits.isfinite().all()
    if options.get("tie_word_embeddings"):
        kept = found.slices.kept["stream 0"]
        assert model.student.lm_head.weight is model.student.model.embed_tokens.weight
        assert torch.equal(model.student.lm_head.weight, model.teacher.lm_head.weight[:, kept])


@torch.no_grad()
def test_a_turned_language_model_in_as_few_directions_is_the_teacher():
    """RMSNorm subtracts no mean: as many directions as the student is wide. Two queries share a key in the teacher."""
    configs = config_of("llama", "teacher"), config_of("llama", "student")
    configs[0].num_hidden_layers = 3
    torch.manual_seed(0)
    networks = [LlamaForCausalLM(config) for config in configs]
    model = LanguageModel.from_teacher_student(*networks, num_blocks=3).eval()
    directions = torch.linalg.qr(torch.randn(16, 8)).Q
    onto = directions @ directions.T
    for name, tensor in model.teacher.state_dict().items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.copy_(onto @ tensor)
        elif "embed_tokens" in name:
            # Far above the norm's epsilon, also for the token that fills up.
            tensor.copy_(torch.randn_like(tensor) @ onto)
        if name.endswith("o_proj.weight"):
            # Every other query of each key, and half of the channels between, say nothing.
            tensor.view(16, 2, 2, 4)[:, :, 1] = 0
        if name.endswith("up_proj.weight"):
            tensor[12:] = 0
    inherit(model, batches=[texts()], converters=True)
    teacher, _ = model.run(texts(), "TTT")
    for sources in ("SSS", "TSS", "STS"):
        torch.testing.assert_close(model.run(texts(), sources)[0], teacher, atol=2e-5, rtol=0)


# What does not fit is refused by name, and nothing is changed.


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ({"hidden_sizes": [4, 8, 8]}, {"hidden_sizes": [6, 8, 8]}, r"stream 1 has 6 channels in the student and 4 in"),
        ({"hidden_sizes": [4, 8, 8]}, {"hidden_sizes": [4, 8, 12]}, r"stream 3 has 12 channels in the student and 8"),
    ],
)
def test_a_student_that_is_wider_somewhere_is_refused_and_unchanged(teacher, student, message):
    depths = {"depths": [1, 1, 1], "num_labels": 5}
    networks = [fresh(VGGConfig(**sizes, **depths)) for sizes in (teacher, student)]
    model = PWLForImageClassification.from_teacher_student(*networks, num_stages=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"init_student_from_teacher: {message}"):
        inherit(model, batches=batches("pwl_vgg", 8), converters=True)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("vit", {"num_attention_heads": 8}, r"vit.layers.0.attention.heads has 8 channels in the student and 2 in"),
        ("vit", {"intermediate_size": 96}, r"vit.layers.0.inner has 96 channels in the student and 48 in"),
        ("vit", {"qkv_bias": False}, r"one of the networks alone has 'attention.k_proj.bias' in vit.layers.0"),
    ],
)
def test_parts_that_do_not_follow_are_refused_by_name(model_type, options, message):
    teacher = tiny_pair(model_type)[0]
    networks = fresh(teacher), fresh(derived_config(teacher, options))
    model = PWLForImageClassification.from_teacher_student(*networks, num_stages=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"init_student_from_teacher: {message}"):
        inherit(model, batches=batches(model_type, 8), converters=True)
    assert_unchanged(model, before)


def test_another_family_is_refused():
    networks = [fresh(tiny_pair(model_type)[0]) for model_type in ("vit", "vit")]
    model = PWLForImageClassification.from_teacher_student(*networks, num_stages=4)
    model.config.student_config.model_type = "deit"
    with pytest.raises(ValueError, match=r"the student's family is 'deit' and the teacher's 'vit'"):
        inherit(model)


def test_a_narrower_student_without_images_is_refused_and_unchanged():
    model = tiny_model("vit")
    before = {name: tensor.clone() for name, tensor in model.student.state_dict().items()}
    with pytest.raises(ValueError, match="a narrower student needs some inputs to choose its channels by"):
        inherit(model)
    assert_unchanged(model.student, before)


def test_features_that_are_not_finite_are_refused():
    model = half_width("resnet")
    with torch.no_grad():
        model.teacher.resnet.embedder.embedder.normalization.bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"what the teacher has at .* is NaN or infinite"):
        inherit(model, batches=batches("resnet", 8))


def test_heads_that_rotate_by_position_keep_their_width():
    networks = [LlamaForCausalLM(config_of("llama", role)) for role in ("teacher", "student")]
    networks[1] = LlamaForCausalLM(derived_config(networks[1].config, {"head_dim": 2}))
    model = LanguageModel.from_teacher_student(*networks, num_blocks=3)
    with pytest.raises(ValueError, match="heads of 4 channels whose positions are rotations cannot begin those of 2"):
        inherit(model, batches=[texts()])


def test_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="must be one of spread, first, got 'last'"):
        inherit(tiny_model("vit"), "last")
