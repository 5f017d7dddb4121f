"""The configuration: what it holds, what it refuses, and that it survives JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    BertConfig,
    ConvNextConfig,
    LongformerConfig,
    PreTrainedConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from pwl_hf import PWLConfig, VGGConfig
from tests.modeling.types import network_config
from tests.tiny import EACH_FAMILY, FAMILIES, tiny_config, tiny_pair


def vit(**kwargs: object) -> ViTConfig:
    return ViTConfig(**{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 4, **kwargs})


# --- Round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH_FAMILY)
def test_json_round_trip_keeps_everything(tmp_path: Path, model_type: str) -> None:
    config = tiny_config(model_type, 3)
    config.save_pretrained(tmp_path)
    for loaded in (
        PWLConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        PWLConfig.from_dict(json.loads(config.to_json_string())),
        PWLConfig(**json.loads(config.to_json_string(use_diff=False))),
        copy.deepcopy(config),
    ):
        assert type(loaded) is PWLConfig
        assert type(loaded.teacher_config) is type(config.teacher_config)
        assert type(loaded.student_config) is type(config.student_config)
        assert loaded.teacher_config is not config.teacher_config
        assert json.loads(loaded.to_json_string()) | {"transformers_version": 0} == json.loads(
            config.to_json_string()
        ) | {"transformers_version": 0}
        assert (loaded.num_stages, loaded.teacher_cuts, loaded.student_cuts) == (
            3,
            config.teacher_cuts,
            config.student_cuts,
        )
        assert loaded.id2label == config.id2label == {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    config = tiny_config("vit", colour="green", nested={"a": [1]})
    config.teacher_config.taste = "sour"
    config.save_pretrained(tmp_path)
    loaded = PWLConfig.from_pretrained(tmp_path)
    assert (loaded.colour, loaded.nested, loaded.teacher_config.taste) == ("green", {"a": [1]}, "sour")


def test_default_cuts_are_written_out() -> None:
    saved = json.loads(tiny_config("vit").to_json_string())
    assert saved["num_stages"] == 4
    assert saved["teacher_cuts"] == [2, 4, 6, 8]
    assert saved["student_cuts"] == [1, 2, 3, 4]
    assert saved["model_type"] == "pwl"


@pytest.mark.parametrize("name", ["num_blocks", "num_stages"])
def test_blocks_have_two_names_and_one_in_the_file(name: str) -> None:
    teacher, student = tiny_pair("vit")
    config = PWLConfig(teacher_config=teacher, student_config=student, **{name: 2})
    assert (config.num_blocks, config.num_stages, config.teacher_cuts) == (2, 2, [4, 8])
    written = json.loads(config.to_json_string())
    assert (written["num_stages"], "num_blocks" in written) == (2, False)
    assert PWLConfig(**written).num_blocks == 2


def test_configs_may_be_given_as_dicts() -> None:
    for model_type in FAMILIES:
        teacher, student = tiny_pair(model_type)
        config = PWLConfig(teacher_config=teacher.to_dict(), student_config=student.to_diff_dict())
        assert type(config.teacher_config) is type(teacher)
        assert type(config.student_config) is type(student)
        assert config.student_config.num_labels == 5


def test_a_bare_config_is_valid() -> None:
    config = PWLConfig()
    assert config.teacher_config.model_type == config.student_config.model_type == "vit"
    assert config.teacher_cuts == [3, 6, 9, 12]


def test_given_config_objects_become_its_parts() -> None:
    teacher, student = tiny_pair("vit")
    config = PWLConfig(teacher_config=teacher, student_config=student)
    assert config.teacher_config is teacher
    assert config.student_config is student


def test_cuts_may_be_tuples_and_come_out_as_lists() -> None:
    config = PWLConfig(teacher_config=vit(), student_config=vit(), num_stages=2, teacher_cuts=(1, 4))
    assert config.teacher_cuts == [1, 4]
    assert config.student_cuts == [2, 4]


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_any_cuts_that_divide_both_networks_are_kept_through_json(data: st.DataObject) -> None:
    depths = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    num_stages = data.draw(st.integers(1, min(depths)))
    cuts = [
        [*sorted(data.draw(st.sets(st.integers(1, d - 1), min_size=num_stages - 1, max_size=num_stages - 1))), d]
        if num_stages > 1
        else [d]
        for d in depths
    ]
    config = PWLConfig(
        teacher_config=vit(num_hidden_layers=depths[0]),
        student_config=vit(num_hidden_layers=depths[1], hidden_size=4),
        num_stages=num_stages,
        teacher_cuts=cuts[0],
        student_cuts=cuts[1],
    )
    loaded = PWLConfig.from_dict(json.loads(config.to_json_string()))
    assert [loaded.teacher_cuts, loaded.student_cuts] == cuts


# --- Labels -----------------------------------------------------------------------------------------------------


def test_labels_are_the_teachers() -> None:
    teacher, student = tiny_pair("resnet")
    student.id2label, student.label2id = {i: f"LABEL_{i}" for i in range(5)}, {f"LABEL_{i}": i for i in range(5)}
    config = PWLConfig(teacher_config=teacher, student_config=student)
    assert config.num_labels == 5
    assert config.id2label[2] == "cat"
    assert config.label2id["elk"] == 4


def test_num_labels_given_are_the_models_and_reach_both_networks() -> None:
    teacher, student = tiny_pair("vit")
    config = PWLConfig(teacher_config=teacher, student_config=student, num_labels=3)
    assert config.num_labels == 3
    config.align_labels()
    assert config.teacher_config.num_labels == config.student_config.num_labels == 3
    assert teacher.num_labels == student.num_labels == 5, "the caller's own objects"


def test_labels_that_differ_are_refused_by_name() -> None:
    teacher, student = tiny_pair("vit")
    student.id2label = {0: "ant", 1: "cat", 2: "bee", 3: "dog", 4: "elk"}
    with pytest.raises(StrictDataclassError, match="label 1 is 'bee' for the teacher and 'cat' for the student"):
        PWLConfig(teacher_config=teacher, student_config=student)
    with pytest.raises(StrictDataclassError, match="num_labels 3 for the teacher and 7 for the student"):
        PWLConfig(teacher_config=vit(num_labels=3), student_config=vit(num_labels=7))


# --- Cuts of hierarchical families ------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["resnet", "convnext", "swin", "pwl_vgg"])
def test_hierarchical_networks_are_cut_where_levels_end(model_type: str) -> None:
    config = tiny_config(model_type)
    assert config.teacher_cuts == [2, 3, 6, 8]
    assert config.student_cuts == [1, 2, 4, 5]


def test_cuts_within_a_level_must_agree_in_resolution() -> None:
    teacher, student = tiny_pair("resnet")
    config = PWLConfig(
        teacher_config=teacher, student_config=student, num_stages=2, teacher_cuts=[4, 8], student_cuts=[3, 5]
    )
    assert config.teacher_cuts == [4, 8]
    message = (
        "cannot be joined after block 1: the teacher has 1/8 of the input's resolution after 3 unit.s., "
        "the student has 1/16 of the input's resolution after 3"
    )
    with pytest.raises(StrictDataclassError, match=message):
        PWLConfig(
            teacher_config=teacher, student_config=student, num_stages=2, teacher_cuts=[3, 8], student_cuts=[3, 5]
        )


# --- Values that cannot be --------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "no stages": ({"num_stages": 0}, "num_blocks must be at least 1, got 0"),
    "negative stages": ({"num_stages": -3}, "num_blocks must be at least 1, got -3"),
    "stages of another type": ({"num_stages": "four"}, "num_blocks"),
    "too many stages": ({"num_stages": 5}, r"\[4\] units cannot be cut into 5 blocks"),
    "cuts too few": ({"teacher_cuts": [2, 4]}, "teacher_cuts must have one cut a block, 4 in all"),
    "cuts not increasing": ({"student_cuts": [1, 3, 2, 4]}, "student_cuts must be positive and increasing"),
    "cuts from zero": ({"student_cuts": [0, 1, 2, 4]}, "student_cuts must be positive and increasing"),
    "cuts short": ({"teacher_cuts": [1, 2, 3, 7]}, "teacher_cuts must cover every unit: the last cut must be 8"),
    "cuts of another type": ({"teacher_cuts": "1234"}, "teacher_cuts"),
    "cuts not whole": ({"teacher_cuts": [1, 2, 3.5, 8]}, "teacher_cuts"),
    "another family": (
        {"student_config": BertConfig(num_hidden_layers=4)},
        "one family, got model_type 'vit' for the teacher and 'bert' for the student",
    ),
    "a family that cannot be cut": (
        {"teacher_config": LongformerConfig()},
        "model_type 'longformer' cannot be cut into blocks; the supported ones are audio-spectrogram-transformer, ",
    ),
    "another patch size": (
        {"student_config": vit(patch_size=32)},
        "teacher has a 14x14 grid of 16x16 patches .* student has a 7x7 grid of 32x32 patches",
    ),
    "another image size": (
        {"student_config": vit(image_size=32)},
        "teacher has a 14x14 grid .* student has a 2x2 grid",
    ),
    "a fingerprint of another type": ({"fingerprint": 7}, "fingerprint"),
}


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_values_are_refused_by_name(change: dict, message: str) -> None:
    good = {"teacher_config": vit(num_hidden_layers=8), "student_config": vit()}
    PWLConfig(**good)
    with pytest.raises(StrictDataclassError, match=message):
        PWLConfig(**(good | change))


def resnet(**kwargs: object) -> ResNetConfig:
    return ResNetConfig(**{"hidden_sizes": [4, 8], "depths": [1, 1], "embedding_size": 4, **kwargs})


def convnext(**kwargs: object) -> ConvNextConfig:
    return ConvNextConfig(**{"hidden_sizes": [4, 8], "depths": [1, 1], **kwargs})


def swin(**kwargs: object) -> SwinConfig:
    return SwinConfig(**{"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 1], **kwargs})


vgg = VGGConfig


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (resnet(), resnet(downsample_in_first_stage=True), "has 1/4 of the .* student has 1/8 of the"),
        (convnext(patch_size=4), convnext(patch_size=2), "teacher has 1/4 of the .* student has 1/2 of the"),
        (swin(image_size=32), swin(image_size=64), "of an image of 32 pixels.* of an image of 64 pixels"),
        (swin(patch_size=4), swin(patch_size=2), "teacher has 1/8 of .* student has 1/4 of"),
        (
            VGGConfig(depths=[2], hidden_sizes=[4]),
            VGGConfig(depths=[1, 1], hidden_sizes=[4, 4]),
            "has 1/2 of .* has 1/4",
        ),
    ],
)
def test_pairs_whose_resolutions_differ_are_refused_naming_both(
    teacher: PreTrainedConfig, student: PreTrainedConfig, message: str
) -> None:
    with pytest.raises(StrictDataclassError, match=f"cannot be joined after block 1.*{message}"):
        PWLConfig(teacher_config=teacher, student_config=student, num_stages=1 if len(teacher.depths) == 1 else 2)


@pytest.mark.parametrize("model_type", EACH_FAMILY)
@pytest.mark.parametrize(("teacher_channels", "student_channels"), [(1, 3), (3, 1), (4, 3)])
def test_networks_of_other_channels_are_refused_naming_both(
    model_type: str, teacher_channels: int, student_channels: int, tmp_path: Path
) -> None:
    teacher, student = tiny_pair(model_type)
    PWLConfig(teacher_config=teacher, student_config=student).save_pretrained(tmp_path)
    teacher.num_channels, student.num_channels = teacher_channels, student_channels
    message = f"same inputs, got num_channels {teacher_channels} for the teacher and {student_channels} for the student"
    with pytest.raises(StrictDataclassError, match=message):
        PWLConfig(teacher_config=teacher, student_config=student)
    # Nor by way of a file that somebody wrote.
    data = json.loads((tmp_path / "config.json").read_text())
    data["teacher_config"]["num_channels"], data["student_config"]["num_channels"] = teacher_channels, student_channels
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(StrictDataclassError, match=message):
        PWLConfig.from_pretrained(tmp_path)
    student.num_channels = teacher_channels
    assert PWLConfig(teacher_config=teacher, student_config=student).teacher_config.num_channels == teacher_channels


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_networks_that_take_one_size_alone_must_take_the_same(model_type: str) -> None:
    teacher, student = tiny_pair(model_type)
    student.image_size = 18
    with pytest.raises(StrictDataclassError, match=r"of an image of 16x16 pixels .* of an image of 18x18 pixels"):
        PWLConfig(teacher_config=teacher, student_config=student)
    teacher.image_size = (18, 18)
    PWLConfig(teacher_config=teacher, student_config=student)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hidden_sizes": [4], "depths": [1, 2]}, "must name the same levels"),
        ({"hidden_sizes": [], "depths": []}, "must name the same levels"),
        ({"hidden_sizes": [4], "depths": [0]}, "must be positive"),
        ({"hidden_sizes": [-4], "depths": [1]}, "must be positive"),
        ({"num_channels": 0}, "must be positive"),
        ({"num_channels": "three"}, "num_channels"),
    ],
)
def test_impossible_vgg_configs_are_refused_by_name(kwargs: dict, message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        VGGConfig(**kwargs)


def test_a_config_that_a_file_made_impossible_is_refused_on_loading(tmp_path: Path) -> None:
    tiny_config("vit").save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(data | {"teacher_cuts": [2, 4, 6, 9]}))
    with pytest.raises(StrictDataclassError, match="teacher_cuts must cover every unit"):
        PWLConfig.from_pretrained(tmp_path)


# --- The length of texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "student", "most"), [(32, 24, 24), (32, 64, 32), (int(1e30), 64, 40)])
def test_texts_end_where_the_tokenizer_and_both_networks_do(own: int, student: int, most: int) -> None:
    networks = [network_config("bert", role) for role in ("teacher", "student")]
    networks[1].max_position_embeddings = student
    assert (
        PWLConfig(teacher_config=networks[0], student_config=networks[1], num_blocks=2).max_tokens_of(
            SimpleNamespace(model_max_length=own)
        )
        == most
    )


def test_without_any_limit_a_text_may_be_of_any_length() -> None:
    assert tiny_config("vit", 2).max_tokens_of(SimpleNamespace(model_max_length=int(1e30))) is None
