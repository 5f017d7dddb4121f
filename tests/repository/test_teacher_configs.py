"""A config of which no teacher can be built is refused when the model is loaded, by field, and nothing is built."""

from __future__ import annotations

import json
import re

import pytest
from transformers import AutoModelForImageClassification

import pwl_hf  # noqa: F401
from pwl_hf import RepositoryError
from pwl_hf.modeling.parts.blueprint import Blueprint
from tests.repository.helpers import load
from tests.tiny import tiny_model

BAD = [
    ("vit", "hidden_size", 0),
    ("vit", "hidden_size", 2**31),
    ("vit", "hidden_size", 25),
    ("vit", "num_attention_heads", 0),
    ("vit", "num_attention_heads", 5),
    ("vit", "intermediate_size", -3),
    ("vit", "hidden_act", "nope"),
    ("vit", "patch_size", 0),
    ("vit", "image_size", [16, -16]),
    ("vit", "num_channels", -1),
    ("vit", "hidden_dropout_prob", 7.0),
    ("vit", "attention_probs_dropout_prob", -0.1),
    ("vit", "to_dict", "x"),
    ("vit", "save_pretrained", None),
    ("deit", "hidden_size", -4),
    ("dinov2", "mlp_ratio", -1),
    ("dinov2", "drop_path_rate", 2.0),
    ("dinov2", "hidden_act", "\x1b[31m"),
    ("swin", "embed_dim", -8),
    ("swin", "window_size", 0),
    ("swin", "num_heads", [3, 1]),
    ("swin", "num_heads", [3, 3, 3, 3]),
    ("resnet", "embedding_size", 0),
    ("resnet", "hidden_sizes", [0, 8]),
    ("resnet", "hidden_act", "nope"),
    ("convnext", "hidden_sizes", [-1, 8]),
    ("convnext", "drop_path_rate", -1),
]


def with_teacher(folder, **fields):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["teacher_config"].update(fields)
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("family", "field", "value"), BAD)
def test_it_is_refused_by_field_before_anything_is_built(copied, monkeypatch, family, field, value):
    folder = with_teacher(copied(family), **{field: value})
    monkeypatch.setattr(Blueprint, "build_vacant", lambda self: pytest.fail("a network was built"))
    with pytest.raises(RepositoryError, match=f"teacher_config.*{field}"):
        load(folder)


def test_what_only_building_shows_is_refused_on_growing_and_the_model_stays(copied):
    model = load(with_teacher(copied("resnet"), layer_type="basic"))
    model.config.teacher_config.hidden_act = "nope"
    with pytest.raises(RepositoryError, match=r"the teacher cannot be built of its config: KeyError: 'nope'"):
        model.load_next_stage()
    assert model.stage == 0


# --- Attention that is code from the Hub ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kernels-community/flash-attn", "org/kernel@main:forward", "flash_attention_2", "x"])
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_it_is_the_callers_choice_alone(copied, key, name):
    folder = copied("vit")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: name}))
    message = (
        f"asks for attn_implementation {name!r}, which may run code from the Hub: give attn_implementation yourself"
    )
    with pytest.raises(RepositoryError, match=re.escape(message)):
        load(folder)
    with pytest.raises(RepositoryError, match=re.escape(message)):
        AutoModelForImageClassification.from_pretrained(folder)
    assert load(folder, attn_implementation="eager").config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_one_without_code_is_taken(copied, name):
    folder = copied("vit")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": name}))
    assert load(folder).student.config._attn_implementation == name


# --- Where a save pushes to ----------------------------------------------------------------------------------------


def test_a_folder_with_a_slash_behind_it_is_pushed_by_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("vit").save_pretrained("with-slash/", push_to_hub=True)
    assert "model.safetensors" in hub.store.files("tester/with-slash")


def test_a_processor_that_is_no_text_is_named_and_nothing_is_written(copied, tmp_path):
    folder = copied("vit")
    (folder / "preprocessor_config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match=r"preprocessor_config\.json is not UTF-8 text"):
        load(folder).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
