"""Graphs of texts and sounds: free lengths, padded batches, and every type of the docs' table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pwl_hf import PWLForTokenClassification, SaveError
from pwl_hf.modeling.exporting import examples, graphs, proving
from pwl_hf.modeling.families.registry import FAMILIES
from tests.exporting.helpers import difference, models_of, plain_session, read_index, sessions
from tests.modeling.driven import LanguageModel, config_of
from tests.modeling.test_tasks import pair
from tests.modeling.test_types import given, joined
from tests.modeling.types import AUDIO, TEXT
from tests.slow import slow_but

TOLERANCE = 1e-5


def free(value: onnx.ValueInfoProto) -> list[Any]:
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def test_batch_and_length_are_free_and_inputs_are_whole_numbers(texts: Path) -> None:
    models, index = models_of(texts), read_index(texts)
    assert index.task == "AutoModelForSequenceClassification"
    assert index.inputs == dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (-1, -1))
    assert set(index.dtypes.values()) == {"int64"}
    for path, model in models.items():
        for value in model.graph.input:
            whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
            expected = ["batch", "length"] if whole else ["batch", "steps", 16 if "teacher" in path else 8]
            assert free(value)[: len(expected)] == expected or path.startswith("onnx/tail")
        names = {value.name for value in model.graph.input}
        assert ("features_in" in names) != ("teacher-00001" in path or "student" in path or "teacher/" in path), path
    assert free(models["teacher/model.onnx"].graph.output[0]) == ["batch", 4]


def test_what_a_graph_does_not_read_is_no_input_of_it(texts: Path) -> None:
    models = models_of(texts)
    names = {path: {value.name for value in model.graph.input} for path, model in models.items()}
    assert names["teacher/model.onnx"] == {"input_ids", "attention_mask", "token_type_ids"}
    # Tokens and their types are for the first block.
    assert names["onnx/teacher-00002.onnx"] == {"features_in", "attention_mask"}


@torch.no_grad()
def test_lengths_and_paddings_that_were_not_traced_are_torchs(texts: Path) -> None:
    from pwl_hf import PWLForSequenceClassification

    generator = torch.Generator().manual_seed(3)
    for stage in range(3):
        model = PWLForSequenceClassification.from_pretrained(texts, stage=stage)
        made = sessions(texts, stage)
        for lengths in ((32, 1, 17), (2,), (5, 5, 5, 5, 5)):
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
            inputs = {
                "input_ids": torch.randint(1, 50, mask.shape, generator=generator) * mask,
                "attention_mask": mask,
                "token_type_ids": torch.randint(0, 2, mask.shape, generator=generator) * mask,
            }
            features = None
            for session in made:
                features = session(features, {name: tensor.numpy() for name, tensor in inputs.items()})
            assert np.abs(features - model(**inputs).logits.numpy()).max() < 1e-5


def test_anyones_onnxruntime_runs_the_teacher(texts: Path) -> None:
    onnx.checker.check_model(str(texts / "teacher" / "model.onnx"), full_check=True)
    session = plain_session(texts / "teacher" / "model.onnx")
    ones = np.ones((2, 7), np.int64)
    (logits,) = session.run(None, {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones})
    assert logits.shape == (2, 4)


# --- Every type -----------------------------------------------------------------------------------------------------

# A refusal is quick; those that are exported are slow, but for `exported_task_model`s, which many tests use.
REFUSED = [name for name in (*TEXT, *AUDIO) if FAMILIES[name].not_exported]


@pytest.mark.parametrize("model_type", slow_but(REFUSED, (*TEXT, *AUDIO)))
def test_each_type_is_exported_or_refused_by_name(tmp_path: Path, model_type: str) -> None:
    model = joined(model_type)
    if reason := FAMILIES[model_type].not_exported:
        with pytest.raises(SaveError, match=f"{model_type} is not exported: {re.escape(reason)}"):
            model.export(tmp_path)
        assert not list(tmp_path.iterdir())
        return
    assert max(model.export(tmp_path).values()) < TOLERANCE
    inputs = {name: tensor.numpy() for name, tensor in given(model_type).items()}
    taken = read_index(tmp_path).inputs
    if model_type in TEXT and "token_type_ids" in taken:
        inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    assert taken.keys() == inputs.keys()
    for stage in range(4):
        features = None
        for session in sessions(tmp_path, stage):
            features = session(features, inputs)
        with torch.no_grad():
            expected = model(**given(model_type), sources=model.schedule[stage]).logits
        assert difference(features, expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "modernbert", "llama"])
def test_tokens_are_exported_padding_aside(tmp_path: Path, model_type: str) -> None:
    networks = pair("AutoModelForTokenClassification", model_type)
    model = PWLForTokenClassification.from_teacher_student(*networks, num_blocks=2).eval()
    assert max(model.export(tmp_path).values()) < TOLERANCE
    assert free(models_of(tmp_path)["teacher/model.onnx"].graph.output[0]) == ["batch", "steps", 3]


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(*_: Any) -> None:
        raise AssertionError("something was traced")

    monkeypatch.setattr(graphs, "trace", trace)


def test_a_task_that_is_not_the_librarys_is_refused_before_it_is_saved(tmp_path: Path, never: None) -> None:
    from pwl_hf import PWLConfig

    networks = {f"{role}_config": config_of("llama", role) for role in ("teacher", "student")}
    model = LanguageModel(PWLConfig(**networks, num_blocks=3))
    with pytest.raises(SaveError, match=r"models of AutoModelFor.* are exported, this one is of AutoModelForCausalLM"):
        model.export(tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_inputs_that_networks_do_not_take_are_named(tmp_path: Path, never: None) -> None:
    # Without a token of padding, decoders refuse several texts at once.
    model = joined("llama", pad_token_id=None)
    with pytest.raises(SaveError, match=r"the networks do not take input_ids \(2, 9\).*batch sizes > 1"):
        model.export(tmp_path / "repo")
    assert not list((tmp_path / "repo").rglob("*.onnx"))


def test_a_size_of_images_is_refused_for_texts(tmp_path: Path, never: None) -> None:
    with pytest.raises(ValueError, match="image_size is 16, and the model takes token ids: leave it out"):
        joined("bert").export(tmp_path / "repo", image_size=16)


def test_a_difference_in_padding_alone_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.array([[1, 1, 0]])
    one, other = np.zeros((1, 3, 2)), np.array([[[0.0, 0], [0, 0], [5, 5]]])
    assert proving._difference(one, other, {"attention_mask": mask}) == 0
    assert proving._difference(one, other, {"attention_mask": np.ones_like(mask)}) == 5


def test_examples_are_padded_where_the_tokenizer_pads() -> None:
    config = joined("bert").config
    for side in ("left", "right"):
        made = examples.examples_of(config, "input_ids", side)
        mask = made.traced["attention_mask"]
        assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=side == "right")
        assert bool((made.traced["input_ids"][mask == 0] == 0).all())
        assert bool((made.traced["input_ids"][mask == 1] != 0).all())
        assert {tuple(probe["input_ids"].shape) for probe in made.probes} >= {(2, 9), (1, 1)}
