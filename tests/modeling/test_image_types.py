"""Types of images: where they are cut, odd settings, families that join, what is refused, and training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from pwl_hf import PWLConfig, PWLForImageClassification, SaveError, Sources
from pwl_hf.modeling.families.registry import UNCUTTABLE, family_of
from pwl_hf.modeling.publishing.processing import processing_files
from pwl_hf.modeling.routes.batchnorm import batch_norms
from pwl_hf.modeling.transformers_internals import class_of_task
from tests.children import python
from tests.modeling.image_types import IMAGES, NOT_EXPORTED, REFUSED, image_batch, image_config
from tests.modeling.test_types import MECHANISMS, TYPES, attentions, given, joined, networks
from tests.modeling.types import NUM_LABELS
from tests.slow import slow_but

Size = tuple[int, int, int]


def as_twins(teacher: Any, num_blocks: int, **cuts: Any) -> Any:
    """A model whose student is a copy of its teacher, with converters that change nothing."""
    model = PWLForImageClassification.from_teacher_student(
        teacher, copy.deepcopy(teacher), num_blocks=num_blocks, **cuts
    )
    with torch.no_grad():
        for converter in (*model.encoders.values(), *model.decoders.values()):
            converter.weight.copy_(torch.eye(len(converter.bias)))
            converter.bias.zero_()
    model.student.requires_grad_(False)
    return model.eval()


def images(size: Size) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, *size, generator=torch.Generator().manual_seed(0))}


def test_every_type_of_transformers_is_cut_or_refused_by_name() -> None:
    assert {*IMAGES, *REFUSED} == set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_type_that_cannot_be_cut_says_why(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"'{model_type}' cannot be cut into blocks: it"):
        family_of(model_type)


# --- Where they are cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", TYPES[: len(IMAGES)])
@torch.no_grad()
def test_each_unit_can_end_a_block_and_gives_what_its_config_tells(model_type: str) -> None:
    """The twin at masks that change networks wherever they can; the width, and the number of features, of each unit."""
    config = image_config(model_type, "teacher")
    family, inputs = family_of(config), given(model_type)
    count = family.num_units(config)
    cuts = list(range(1, count + 1))
    model = as_twins(networks(model_type)[0], count, teacher_cuts=cuts, student_cuts=cuts)
    output = model(**inputs, sources="T" * count, output_hidden_states=True)
    for mask in ("TS" * count, "ST" * count, "TTS" * count):
        assert torch.equal(model(**inputs, sources=mask[:count]).logits, output.logits), mask
    for unit, features in enumerate(output.hidden_states, start=1):
        boundary = family.boundary(config, unit)
        assert features.shape[1 if boundary.channels_first else -1] == boundary.width
        assert features.ndim == (4 if boundary.channels_first else 3)
        if boundary.geometry.startswith("1/") and "of an image" not in boundary.geometry:
            rows = inputs["pixel_values"].shape[-1] // int(boundary.geometry.split()[0].removeprefix("1/"))
            special = " one for the class" in boundary.geometry
            assert features[0].numel() // boundary.width == rows * rows + special, (unit, boundary)


@pytest.mark.parametrize(
    ("model_type", "others"),
    [
        ("mobilenet_v1", {"depth_multiplier": 0.75}),
        ("mobilenet_v2", {"depth_multiplier": 1.4}),
        (
            "mobilevit",
            {"image_size": 224, "hidden_sizes": [96, 120, 144], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 384]},
        ),
        ("mobilevitv2", {"width_multiplier": 1.75}),
        ("efficientnet", {"width_coefficient": 1.2, "depth_coefficient": 1.4, "hidden_dim": 1536, "image_size": 224}),
        ("swiftformer", {}),
        ("hgnet_v2", {}),
        ("textnet", {"image_size": 224}),
        ("levit", {"num_attention_heads": [4, 6, 8], "depths": [2, 3, 4]}),
        ("hiera", {}),
        ("pvt_v2", {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_of_published_sizes_are_as_wide_as_their_config_tells(model_type: str, others: dict[str, Any]) -> None:
    config = AutoConfig.for_model(model_type, **others)
    family, shapes = family_of(config), dict[int, torch.Size]()
    with torch.device("meta"):
        network = class_of_task(config, PWLForImageClassification.task)(config).eval()
    for unit in range(family.num_units(config)):
        last = network.get_submodule(family.unit_paths(config, unit)[-1])
        last.register_forward_hook(
            lambda *given, unit=unit: shapes.update(
                {unit: (given[2][0] if type(given[2]) is tuple else given[2]).shape}
            )
        )
    side = config.image_size[0] if isinstance(getattr(config, "image_size", 224), tuple | list) else 224
    network(torch.empty(1, 3, side, side, device="meta"))
    for unit, shape in shapes.items():
        boundary = family.boundary(config, unit + 1)
        assert shape[1 if boundary.channels_first else -1] == boundary.width
        rows = -(-side // int(boundary.geometry.split()[0].rstrip(",").removeprefix("1/")))
        assert (shape[2:].numel() if boundary.channels_first else shape[1]) == rows * rows
    assert shapes.keys() == set(range(family.num_units(config)))


# A type, its settings, and the images' channels, height and width.
_ODD: list[tuple[str, dict[str, Any], Size]] = [
    ("beit", {"use_mean_pooling": False, "drop_path_rate": 0.3, "layer_scale_init_value": 0.0}, (3, 16, 16)),
    (
        "beit",
        {"use_relative_position_bias": False, "use_shared_relative_position_bias": True, "num_channels": 1},
        (1, 16, 16),
    ),
    ("beit", {"image_size": [16, 24]}, (3, 16, 24)),
    ("beit", {"use_relative_position_bias": False, "use_absolute_position_embeddings": True}, (3, 16, 16)),
    ("beit", {}, (3, 24, 24)),
    (
        "data2vec-vision",
        {"use_relative_position_bias": False, "use_shared_relative_position_bias": True},
        (3, 16, 16),
    ),
    ("data2vec-vision", {"use_mean_pooling": False, "num_channels": 1}, (1, 24, 24)),
    ("dinov2_with_registers", {"num_register_tokens": 0, "num_channels": 1}, (1, 24, 16)),
    ("vit_msn", {"image_size": [16, 24], "num_channels": 1}, (1, 16, 24)),
    ("ijepa", {"image_size": [16, 24]}, (3, 16, 24)),
    ("clip", {"num_channels": 1, "hidden_act": "gelu"}, (1, 16, 16)),
    ("siglip", {"vision_use_head": False}, (3, 16, 16)),
    ("regnet", {"layer_type": "x", "downsample_in_first_stage": False, "num_channels": 1}, (1, 48, 70)),
    ("bit", {"layer_type": "bottleneck", "output_stride": 8}, (3, 64, 64)),
    ("bit", {"global_padding": "SAME", "embedding_dynamic_padding": True, "num_channels": 1}, (1, 50, 50)),
    ("convnextv2", {"patch_size": 4, "num_channels": 1}, (1, 70, 70)),
    ("poolformer", {"use_layer_scale": False, "strides": [2, 2, 2, 1], "num_channels": 1}, (1, 70, 50)),
    ("hgnet_v2", {"use_learnable_affine_block": True, "stage_downsample": [True, True, False, True]}, (3, 70, 70)),
    ("textnet", {"stem_num_channels": 1}, (1, 70, 70)),
    ("mobilenet_v1", {"num_channels": 1, "tf_padding": False}, (1, 50, 70)),
    ("mobilenet_v2", {"output_stride": 16, "finegrained_output": False}, (3, 50, 70)),
    ("mobilenet_v2", {"output_stride": 8, "first_layer_is_expansion": False, "num_channels": 1}, (1, 64, 64)),
    ("mobilevit", {"output_stride": 16, "num_channels": 1}, (1, 50, 70)),
    ("mobilevitv2", {"output_stride": 8}, (3, 64, 96)),
    ("efficientnet", {"pooling_type": "max", "depthwise_padding": [1], "num_channels": 1}, (1, 50, 50)),
    ("swiftformer", {"use_layer_scale": False, "num_channels": 1}, (1, 96, 64)),
    ("swinv2", {"window_size": 3, "num_channels": 1}, (1, 30, 38)),
    ("focalnet", {"use_conv_embed": True, "patch_size": 4}, (3, 70, 50)),
    ("focalnet", {"use_post_layernorm": True, "use_layerscale": True, "num_channels": 1}, (1, 30, 38)),
    ("pvt", {"num_channels": 1, "image_size": 96}, (1, 96, 96)),
    ("pvt_v2", {"linear_attention": True, "strides": [4, 2, 2, 1], "patch_sizes": [7, 3, 3, 1]}, (3, 70, 50)),
    ("segformer", {"reshape_last_stage": False, "num_channels": 1}, (1, 70, 50)),
    ("hiera", {"image_size": [64, 96], "masked_unit_attention": [True, False, False, False]}, (3, 64, 96)),
    ("levit", {"num_channels": 1}, (1, 64, 64)),
]
# The first of each type that is quick elsewhere.
_QUICK_ODD = {[case[0] for case in _ODD].index(name) for name in MECHANISMS if name in {case[0] for case in _ODD}}


@pytest.mark.parametrize(
    ("model_type", "others", "size"),
    [pytest.param(*case, marks=() if number in _QUICK_ODD else pytest.mark.slow) for number, case in enumerate(_ODD)],
    ids=[f"{case[0]}-{number}" for number, case in enumerate(_ODD)],
)
@torch.no_grad()
def test_odd_settings_and_sizes(tmp_path: Path, model_type: str, others: dict[str, Any], size: Size) -> None:
    torch.manual_seed(0)
    teacher, student = (
        AutoModelForImageClassification.from_config(image_config(model_type, role, **others)).eval()
        for role in ("teacher", "student")
    )
    inputs, twins = images(size), as_twins(copy.deepcopy(teacher.requires_grad_(False)), 3)
    for mask in Sources.all(3):
        assert torch.equal(twins(**inputs, sources=str(mask)).logits, teacher(**inputs).logits)
    expected = {0: student(**inputs).logits, 3: teacher(**inputs).logits}
    model = PWLForImageClassification.from_teacher_student(teacher, student, num_blocks=3).eval()
    model.save_pretrained(tmp_path)
    grown = PWLForImageClassification.from_pretrained(tmp_path)
    for stage in range(4):
        grown.set_stage(stage)
        assert torch.equal(grown(**inputs).logits, model(**inputs, sources=grown.sources).logits)
        assert stage not in expected or torch.equal(grown(**inputs).logits, expected[stage])


@pytest.mark.parametrize("model_type", ["beit", "data2vec-vision", "vit_msn", "ijepa", "clip", "siglip", "hiera"])
@torch.no_grad()
def test_position_encodings_are_interpolated_on_demand(model_type: str) -> None:
    model, inputs = joined(model_type), images((3, 96, 96) if model_type == "hiera" else (3, 24, 24))
    for mask, network in (("SSS", model.student), ("TTT", model.teacher)):
        logits = model(**inputs, sources=mask, interpolate_pos_encoding=True).logits
        assert torch.equal(logits, network(**inputs, interpolate_pos_encoding=True).logits)
    assert model(**inputs, sources="STS", interpolate_pos_encoding=True).logits.shape == (2, NUM_LABELS)


def test_what_a_network_does_not_take_is_refused_by_name() -> None:
    model, inputs = joined("regnet"), given("regnet")
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True does not apply to model_type 'regnet'"):
        model(**inputs, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="spatial_shapes does not apply to model_type 'regnet'"):
        model(**inputs, spatial_shapes=torch.ones(3, 2))


# --- What joins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("clip", "vit"),
        ("resnet", "regnet"),
        ("swinv2", "focalnet"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("vit", "beit"),
                ("dinov2", "vit_msn"),
                ("siglip", "ijepa"),
                ("bit", "mobilenet_v2"),
                ("convnextv2", "convnext"),
                ("segformer", "pvt_v2"),
            )
        ),
    ],
)
@torch.no_grad()
def test_types_that_see_images_alike_join(tmp_path: Path, teacher: str, student: str) -> None:
    pair, inputs = [networks(teacher)[0], networks(student)[1]], given(teacher)
    whole = PWLForImageClassification.from_teacher_student(*copy.deepcopy(pair), num_blocks=3).eval()
    whole.save_pretrained(tmp_path)
    model = PWLForImageClassification.from_pretrained(tmp_path)
    for mask in Sources.all(3):
        model.set_sources(str(mask))
        assert torch.equal(model(**inputs).logits, whole(**inputs, sources=str(mask)).logits)
    assert torch.equal(whole(**inputs, sources="TTT").logits, pair[0](**inputs).logits)
    assert torch.equal(whole(**inputs, sources="SSS").logits, pair[1](**inputs).logits)


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        ("vit", "deit", r"4x4 patches and 1 special token.*4x4 patches and 2 special token"),
        ("vit", "dinov2_with_registers", r"1 special token.*4 special token"),
        ("vit", "regnet", r"patches and 1 special token.*1/4 of the input's resolution after"),
        ("swin", "swinv2", r"1/4 of an image of 32 pixels .*1/2 of the input's resolution, tokens in rows"),
        ("pvt", "segformer", r"tokens in rows behind one for the class .*tokens in rows after"),
        ("hiera", "segformer", r"tokens unrolled 3 times by 2 of an image of 64x64 pixels .*tokens in rows"),
        ("siglip2", "siglip", "must be of one family"),
    ],
)
def test_types_that_see_images_in_other_ways_do_not(teacher: str, student: str, reason: str) -> None:
    pair = [networks(teacher)[0], networks(student)[1]]
    with pytest.raises(StrictDataclassError, match=f"(?s){reason}"):
        PWLForImageClassification.from_teacher_student(*pair, num_blocks=3)


@pytest.mark.parametrize(
    ("model_type", "others", "reason"),
    [
        ("clip", {"num_channels": 1}, "got num_channels 3 for the teacher and 1 for the student"),
        ("textnet", {"stem_num_channels": 1}, "got num_channels 3 for the teacher and 1 for the student"),
        ("siglip2", {"patch_size": 2}, "got patch_size 4 for the teacher and 2 for the student"),
        ("levit", {"image_size": 128}, "of an image of 64x64 pixels .* of an image of 128x128 pixels"),
        ("regnet", {"depths": [1, 1]}, "student_config: its levels cannot be told: there are 2 depths, 4 widths"),
        (
            "hiera",
            {"patch_stride": [4, 2]},
            r"patch_stride \[4, 2\] and query_stride .* not square",
        ),
        ("bit", {"hidden_act": "no-act"}, "student_config: hidden_act 'no-act' is no activation"),
        ("clip", {"hidden_act": "no-act"}, "student_config: hidden_act 'no-act' is no activation"),
        ("poolformer", {"strides": [4, 2]}, "student_config: its levels cannot be told: .* and 2 strides"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(model_type: str, others: dict[str, Any], reason: str) -> None:
    pair = {"teacher_config": image_config(model_type, "teacher")}
    with pytest.raises((StrictDataclassError, ValueError), match=f"(?s){reason}"):
        PWLConfig(**pair, student_config=image_config(model_type, "student", **others), num_blocks=3)


def test_a_network_with_a_second_head_is_refused() -> None:
    config = image_config("levit", "teacher")
    teacher = transformers.LevitForImageClassificationWithTeacher(config)
    with pytest.raises(TypeError, match="must be a LevitForImageClassification, got LevitForImageClassificationWith"):
        PWLForImageClassification.from_teacher_student(teacher, networks("levit")[1], num_blocks=3)


def test_labels_that_a_config_says_in_two_ways_must_agree() -> None:
    whole, half = image_config("pvt", "teacher"), AutoConfig.for_model("pvt", num_labels=NUM_LABELS)
    for pair in ((whole, half), (half, whole)):
        with pytest.raises(StrictDataclassError, match="has num_labels 3 and names 0 labels: give it"):
            PWLConfig(teacher_config=pair[0], student_config=pair[1], num_blocks=3)


# --- Training ---------------------------------------------------------------------------------------------------

# Layers that drop samples or features at random; the others have none, or have it by default.
_DROPPING: dict[str, dict[str, Any]] = {
    "beit": {"drop_path_rate": 0.5},
    "dinov2_with_registers": {"drop_path_rate": 0.5},
    "bit": {"drop_path_rate": 0.5},
    "convnextv2": {"drop_path_rate": 0.5},
    "poolformer": {"drop_path_rate": 0.5},
    "efficientnet": {"drop_connect_rate": 0.5},
    "swiftformer": {"drop_path_rate": 0.5, "drop_mlp_rate": 0.2},
    "cvt": {"drop_path_rate": [0.5] * 3, "drop_rate": [0.2] * 3},
    "swinv2": {"drop_path_rate": 0.5},
    "focalnet": {"drop_path_rate": 0.5},
    "pvt": {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.2},
    "segformer": {"drop_path_rate": 0.5},
    "hiera": {"drop_path_rate": 0.5},
    "siglip": {"attention_dropout": 0.3},
}


@pytest.mark.parametrize("model_type", _DROPPING)
def test_what_is_dropped_in_training_is_what_the_student_alone_drops(model_type: str) -> None:
    model, plain = joined(model_type, **_DROPPING[model_type]).train(), networks(model_type, **_DROPPING[model_type])[1]
    answers = []
    for network, seed in ((model, 0), (plain.train(), 0), (model, 1)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            answers.append(network(**given(model_type)).logits)
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


@pytest.mark.parametrize(
    "model_type",
    slow_but(["regnet", "mobilevit"], ["regnet", "mobilenet_v2", "mobilevit", "efficientnet", "cvt", "levit"]),
)
@torch.no_grad()
def test_statistics_of_a_mask_are_those_of_its_own_features(tmp_path: Path, model_type: str) -> None:
    model, inputs = joined(model_type), given(model_type)
    before = {mask: model(**inputs, sources=mask).logits for mask in ("SSS", "TTT", "TSS")}
    assert any(True for _ in batch_norms(model.student, "student"))
    model.estimate_statistics([inputs], "TSS")
    after = model(**inputs, sources="TSS").logits
    assert not torch.equal(after, before["TSS"])
    assert all(torch.equal(model(**inputs, sources=mask).logits, before[mask]) for mask in ("SSS", "TTT"))
    model.save_pretrained(tmp_path)
    again = PWLForImageClassification.from_pretrained(tmp_path)
    again.load_next_stage()
    assert torch.equal(again(**inputs).logits, after)


# --- Around the model -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_of_patches_does_not_count_when_converters_are_fitted() -> None:
    model, inputs = joined("siglip2"), given("siglip2")
    more = dict(inputs, pixel_values=inputs["pixel_values"] + 9.0 * (1 - inputs["pixel_attention_mask"][..., None]))
    weights = []
    for batch in (inputs, more):
        model.fit_converters([batch])
        weights.append(model.decoders["1"].weight.clone())
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("model_type", ["clip", "siglip2", "mobilevit"])
def test_a_pipeline_classifies_by_the_image_processor_in_the_root(tmp_path: Path, model_type: str) -> None:
    from PIL import Image

    square = {"height": 16, "width": 16}
    processor = {
        "clip": transformers.CLIPImageProcessorPil(size=square, crop_size=square),
        "siglip2": transformers.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16),
        "mobilevit": transformers.MobileViTImageProcessorPil(size={"shortest_edge": 64}, crop_size=4 * square["width"]),
    }[model_type]
    model = joined(model_type)
    model.parts.processing = processing_files(processor)
    model.save_pretrained(tmp_path)
    classify = transformers.pipeline("image-classification", model=str(tmp_path))
    picture = Image.linear_gradient("L").convert("RGB").resize((40, 30))
    inputs = dict(classify.image_processor(picture, return_tensors="pt"))
    with torch.no_grad():
        expected = networks(model_type)[1](**inputs).logits.softmax(-1)[0]
    found = {item["label"]: item["score"] for item in classify(picture)}
    assert found == pytest.approx({f"LABEL_{i}": float(score) for i, score in enumerate(expected)}, abs=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_the_file_of_code_opens_a_staged_network_without_the_package(tmp_path: Path) -> None:
    model, inputs = joined("focalnet"), image_batch("focalnet")
    model.save_pretrained(tmp_path, remote_code="standalone")
    torch.save((inputs, model(**inputs, sources="TTS").logits), tmp_path / "expected.pt")
    done = python(
        "import torch, transformers\n"
        f"model = transformers.AutoModelForImageClassification.from_pretrained({str(tmp_path)!r}, "
        "trust_remote_code=True, stage=2)\n"
        f"inputs, expected = torch.load({str(tmp_path)!r} + '/expected.pt')\n"
        "with torch.no_grad(): print(torch.equal(model(**inputs).logits, expected))\n"
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_patches_need_their_shapes() -> None:
    with pytest.raises(ValueError, match="a siglip2 takes patches: give pixel_attention_mask and spatial_shapes too"):
        joined("siglip2")(pixel_values=torch.zeros(1, 3, 16, 16))


def test_patches_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"a siglip2 is not exported: it resizes its positions"):
        joined("siglip2").export(tmp_path / "new")
    assert not any(tmp_path.rglob("*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in IMAGES if name not in NOT_EXPORTED])
def test_graphs_give_what_torch_gives(tmp_path: Path, model_type: str) -> None:
    side = given(model_type)["pixel_values"].shape[-1]
    differences = joined(model_type).export(tmp_path / "new", image_size=side)
    assert len(differences) == 4


# --- The tables of the docs -------------------------------------------------------------------------------------


def docs_tables() -> tuple[str, str]:
    """The tables of docs/tasks.md on images: the types, and those that are refused."""
    lines = ["| `model_type` | features | attention | statistics | slices | graphs |", "|---|---|---|---|---|---|"]
    for model_type in IMAGES:
        network, family = networks(model_type)[0], family_of(model_type)
        boundary = family.boundary(network.config, 1)
        shown = "maps" if boundary.channels_first else "tokens"
        kinds = {type(module).__name__ for module in network.modules()}
        attention = ", ".join(attentions(model_type)) if any("Attention" in kind for kind in kinds) else ""
        statistics = "yes" if any(True for _ in batch_norms(network, "")) else ""
        slices = "yes" if family.tells_channels else "equal widths"
        graphs = f"no: {family.not_exported}" if model_type in NOT_EXPORTED else "yes"
        lines.append(f"| {model_type} | {shown} | {attention} | {statistics} | {slices} | {graphs} |")
    refused = ["| `model_type` | why it is not cut |", "|---|---|"]
    refused += [f"| {model_type} | {UNCUTTABLE[model_type]} |" for model_type in REFUSED]
    return "\n".join(lines), "\n".join(refused)


def test_the_docs_have_every_type() -> None:
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    for table in docs_tables():
        assert table in text, f"docs/tasks.md should have this table:\n{table}"
    assert f"{len(IMAGES)} of the {len(IMAGES) + len(REFUSED)} types of images" in text
