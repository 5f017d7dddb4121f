"""Families that are data: a network's own forward drives, whatever it is called with, at every stage and mask."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

from pwl_hf import (
    DrivenFamily,
    PWLConfig,
    PWLForSequenceClassification,
    PWLPreTrainedModel,
    RepositoryError,
    SaveError,
    Sources,
    StageError,
)
from pwl_hf.modeling.families.registry import FAMILIES
from pwl_hf.modeling.repository.manifest import Manifest
from tests.modeling.driven import LanguageModel, config_of, driven_model, texts
from tests.repository.helpers import read_json

TYPES = ["bert", "mpnet", "llama"]


def kind_of(model: PWLPreTrainedModel) -> type[Any]:
    return type(model)


def own_logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(**texts()).logits


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_a_student_that_is_the_teacher_is_it_at_every_mask(model_type: str, attn_implementation: str) -> None:
    if model_type == "mpnet" and attn_implementation == "sdpa":
        pytest.skip("MPNet has eager attention alone")
    model = driven_model(model_type, student="teacher")
    model.set_attn_implementation(attn_implementation)
    model.student.load_state_dict(model.teacher.state_dict())
    for converter in (*model.encoders.values(), *model.decoders.values()):
        converter.weight.copy_(torch.eye(16))
        converter.bias.zero_()
    expected = own_logits(model.teacher)
    for mask in Sources.all(3):
        assert torch.equal(model(**texts(), sources=str(mask)).logits, expected), mask


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_it_grows_from_a_repository_into_the_teacher(tmp_path: Path, model_type: str) -> None:
    original = driven_model(model_type)
    original.save_pretrained(tmp_path)
    by_mask = {str(mask): original(**texts(), sources=str(mask)).logits for mask in Sources.all(3)}
    assert len({tuple(logits.flatten().tolist()) for logits in by_mask.values()}) == 8
    model = PWLForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(model(**texts()).logits, own_logits(original.student))
    with model.stream_stages():
        pass
    assert torch.equal(model(**texts()).logits, own_logits(original.teacher))
    assert torch.equal(model(**texts()).logits, own_logits(model.teacher))
    for mask, logits in by_mask.items():
        model.set_sources(mask)
        assert torch.equal(model(**texts()).logits, logits), mask
    again = tmp_path / "again"
    model.save_pretrained(again)
    for path in tmp_path.rglob("*.safetensors"):
        if again not in path.parents:
            assert path.read_bytes() == (again / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_plain_transformers_opens_the_teacher(tmp_path: Path, hub: Any, repo_id: str, model_type: str) -> None:
    model = driven_model(model_type)
    model.push_to_hub(repo_id)
    teacher, info = AutoModelForSequenceClassification.from_pretrained(
        repo_id, subfolder="teacher", output_loading_info=True, cache_dir=tmp_path
    )
    assert not any(info.values())
    assert torch.equal(own_logits(teacher.eval()), own_logits(model.teacher))


@torch.no_grad()
def test_a_model_moves_and_casts_whatever_is_resident(tmp_path: Path) -> None:
    driven_model("llama").save_pretrained(tmp_path)
    model = PWLForSequenceClassification.from_pretrained(tmp_path)
    assert model.teacher.model.rotary_emb.inv_freq.device.type == "cpu"
    model.to(torch.float64).set_stage("teacher")
    expected = PWLForSequenceClassification.from_pretrained(tmp_path, stage="teacher")
    assert torch.allclose(model(**texts()).logits.float(), expected(**texts()).logits, atol=1e-5)


@torch.no_grad()
def test_gradients_reach_the_converters_and_blocks_of_a_mask() -> None:
    model = driven_model("bert").train()
    with torch.enable_grad():
        model(**texts(), sources="STS").logits.sum().backward()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"decoders.1.weight", "encoders.2.weight"} <= names
    assert not any(name.startswith(("teacher.", "decoders.2", "encoders.1")) for name in names)
    assert any(name.startswith("student.bert.encoder.layer.0") for name in names)
    assert not any(name.startswith("student.bert.encoder.layer.1") for name in names)


@torch.no_grad()
def test_paths_of_many_masks_share_their_blocks() -> None:
    model = driven_model("bert")
    paths = model.shared_paths(texts())
    for mask in Sources.all(3):
        found = paths(str(mask))
        assert torch.equal(found.logits, model(**texts(), sources=str(mask)).logits)
        assert [tuple(states.shape) for states in found.hidden_states] == [
            (3, 8, 16 if letter == "T" else 8) for letter in str(mask)
        ]
    some = model.shared_paths(texts()).logits_of("TSS", slice(1, None))
    assert torch.allclose(some, paths("TSS").logits[1:], atol=1e-6)


@torch.no_grad()
def test_converters_are_fitted_to_texts() -> None:
    model = driven_model("bert", student="teacher")
    model.student.load_state_dict(model.teacher.state_dict())
    model.fit_converters([texts(), texts()], ridge=1e-9)
    assert torch.allclose(model(**texts(), sources="TST").logits, own_logits(model.teacher), atol=1e-2)


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_a_block_is_a_module_of_its_own(model_type: str) -> None:
    model, given = driven_model(model_type), texts()
    features = model.block(1, "TTT")(given["input_ids"], attention_mask=given["attention_mask"])
    for number in (2, 3):
        with pytest.raises(ValueError, match="drives its own blocks, each of which takes 'input_ids' too"):
            model.block(number, "TTT")(features)
        features = model.block(number, "TTT")(features, **given)
    assert torch.equal(features, own_logits(model.teacher))
    with pytest.raises(ValueError, match="blocks are numbered from 1 to 3, got 4"):
        model.block(4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_a_copy_runs_its_own_blocks(copied: Callable[[Any], Any]) -> None:
    model = driven_model("bert")
    model.shared_paths(texts())("TSS")
    other = copied(model)
    for parameter in other.parameters():
        parameter.mul_(2)
    for mask in ("SSS", "TSS"):
        expected = other(**texts(), sources=mask).logits
        assert torch.allclose(other.shared_paths(texts())(mask).logits, expected)
        assert not torch.allclose(model.shared_paths(texts())(mask).logits, expected)


@torch.no_grad()
def test_labels_among_the_inputs_are_not_for_the_networks() -> None:
    model, given = driven_model("bert"), {**texts(), "labels": torch.tensor([0, 1, 99])}
    assert torch.equal(model.shared_paths(given)("TSS").logits, model(**texts(), sources="TSS").logits)
    model.fit_converters([given])


@torch.no_grad()
def test_a_forward_that_was_replaced_is_refused_by_name() -> None:
    model = driven_model("bert")
    original = model.student.bert.forward
    model.student.bert.forward = lambda *args, **kwargs: original(*args, **kwargs)
    with pytest.raises(StageError, match=r"the forward of bert \(BertModel\) was replaced"):
        model(**texts(), sources="TSS")


@pytest.mark.parametrize("model_type", ["bert", "llama"])
@torch.no_grad()
def test_a_module_of_no_block_that_is_replaced_is_seen(model_type: str) -> None:
    model = driven_model(model_type)
    before = model(**texts()).logits
    if model_type == "bert":
        model.student.dropout = torch.nn.Threshold(10, 1)
    else:
        model.student.model.rotary_emb = copy.deepcopy(model.student.model.rotary_emb)
        model.student.model.rotary_emb.inv_freq.mul_(3)
    found = model(**texts()).logits
    assert torch.equal(found, own_logits(model.student))
    assert not torch.equal(found, before)


@torch.no_grad()
def test_a_warm_up_does_not_write_into_a_cache(tmp_path: Path) -> None:
    driven_model("llama", language_model=True).save_pretrained(tmp_path)
    model, cache = LanguageModel.from_pretrained(tmp_path), DynamicCache()
    model.run({**texts(), "past_key_values": cache, "use_cache": True})
    with model.stream_stages():
        pass
    assert (model.stage, cache.get_seq_length()) == (3, 8)


def test_a_family_that_lacks_something_or_names_what_is_not_there_is_refused(monkeypatch: Any) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'layer_list'"):
        DrivenFamily("my-bert", base="bert", before=("embeddings",))  # type: ignore[call-arg]
    monkeypatch.setitem(FAMILIES, "bert", replace(FAMILIES["bert"], layer_list="encoder.layers"))  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"family 'bert' names 'bert.encoder.layers.0', .*Classification has no such"):
        driven_model("bert")


# --- What blocks share ------------------------------------------------------------------------------------------


def files_at(folder: Path) -> dict[int, set[str]]:
    manifest = Manifest.from_json((folder / "pwl_index.json").read_text())
    return {stage.stage: {entry.path for entry in stage.files} for stage in manifest.stages}


TIED = "teacher/shared-model.embed_tokens.weight.safetensors"


@pytest.fixture
def tied() -> PWLPreTrainedModel:
    return driven_model("llama", language_model=True, tie_word_embeddings=True)


@torch.no_grad()
def test_a_tied_tensor_is_stored_once_and_tied_again(tmp_path: Path, tied: PWLPreTrainedModel) -> None:
    tied.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "pwl_index.json").read_text())
    assert (index["format_version"], index["min_reader"]) == (2, 2)
    entry = next(entry for entry in index["stages"][1]["files"] if entry["path"] == TIED)
    assert (entry["blocks"], entry["parameters"]) == ([1, 3], 50 * 16)
    stored: list[str] = []
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored += [name for name in file.keys() if "embed_tokens" in name or "lm_head" in name]  # noqa: SIM118
    assert sorted(stored) == ["model.embed_tokens.weight", "student.model.embed_tokens.weight"]
    model = LanguageModel.from_pretrained(tmp_path)
    assert model.student.lm_head.weight is model.student.model.embed_tokens.weight
    for stage in (1, 2, 3):
        assert model.load_next_stage() == stage
        assert torch.equal(model(**texts()).logits, tied(**texts(), sources=model.sources).logits)
    assert model.teacher.lm_head.weight is model.teacher.model.embed_tokens.weight
    assert torch.equal(model(**texts()).logits, own_logits(tied.teacher))
    model.set_stage(0)
    assert torch.equal(model(**texts()).logits, own_logits(tied.student))
    assert model.student.lm_head.weight is model.student.model.embed_tokens.weight


@torch.no_grad()
def test_a_tied_tensor_is_there_before_blocks_in_low_precision(tmp_path: Path, tied: PWLPreTrainedModel) -> None:
    tied.add_tier()
    tied.save_pretrained(tmp_path)
    kept = LanguageModel.from_pretrained(tmp_path, keep_all=True)
    model = LanguageModel.from_pretrained(tmp_path)
    for mask in tied.schedule:
        model.set_sources(mask)
        kept.set_sources(mask)
        assert torch.equal(model(**texts()).logits, kept(**texts()).logits), mask
    assert torch.equal(model(**texts()).logits, own_logits(tied.teacher))


@torch.no_grad()
def test_it_is_resident_as_long_as_one_of_its_blocks_is(tmp_path: Path, tied: PWLPreTrainedModel) -> None:
    tied.save_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(tmp_path, stage=1)
    names = {str(part) for part in model.parts.resident()}
    assert "teacher model.embed_tokens.weight (shared by blocks)" in names
    # The student's first block is gone, its head is not.
    assert "student model.embed_tokens.weight (shared by blocks)" in names
    head = model.student.lm_head.weight
    model.set_sources("STT")
    assert model.student.model.embed_tokens.weight is not None
    assert torch.equal(model.student.model.embed_tokens.weight, head)
    model.set_sources("TTT")
    assert not any(str(part).startswith("student") for part in model.parts.resident())
    model.set_sources("TTS")
    assert torch.equal(model(**texts()).logits, tied(**texts(), sources="TTS").logits)


@torch.no_grad()
def test_a_change_of_a_tied_tensor_is_not_lost(tmp_path: Path, tied: PWLPreTrainedModel) -> None:
    tied.save_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(tmp_path, stage="teacher")
    model.teacher.lm_head.weight.add_(1.0)
    with pytest.raises(StageError, match=r"embed_tokens.weight \(shared by blocks\) was changed"):
        model.set_stage(0)
    model.save_pretrained(tmp_path / "changed")
    again = LanguageModel.from_pretrained(tmp_path / "changed", stage="teacher")
    assert torch.equal(again(**texts()).logits, model(**texts()).logits)


@torch.no_grad()
def test_a_tie_that_was_broken_is_neither_saved_nor_released(tmp_path: Path, tied: PWLPreTrainedModel) -> None:
    tied.save_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(tmp_path, keep_all=True)
    weight = model.teacher.lm_head.weight
    model.teacher.lm_head.weight = torch.nn.Parameter(weight + 1, requires_grad=False)
    with pytest.raises(SaveError, match=r"'lm_head.weight' is not tied to 'model.embed_tokens.weight'"):
        model.save_pretrained(tmp_path / "untied")
    growing = LanguageModel.from_pretrained(tmp_path, stage="teacher")
    growing.teacher.lm_head.weight = torch.nn.Parameter(weight + 1, requires_grad=False)
    with pytest.raises(StageError, match=r"'lm_head.weight' is not tied"):
        growing.set_stage(0)


@pytest.mark.parametrize("kept", [["lm_head.weight"], ["model.embed_tokens.weight"], None])
@torch.no_grad()
def test_a_tied_tensor_is_saved_as_given_under_any_of_its_names(tmp_path: Path, tied: Any, kept: Any) -> None:
    names = [f"teacher.{name}" for name in kept or ["lm_head.weight", "model.embed_tokens.weight"]]
    given = tied.teacher.lm_head.weight + 1
    tied.save_pretrained(tmp_path, state_dict={name: given.clone() for name in names})
    assert torch.equal(LanguageModel.from_pretrained(tmp_path, stage="teacher").teacher.lm_head.weight, given)


def test_two_values_for_a_tied_tensor_are_refused(tmp_path: Path, tied: Any) -> None:
    given = {"student.lm_head.weight": tied.student.lm_head.weight + 1}
    with pytest.raises(ValueError, match=r"'student.lm_head.weight' and 'student.model.embed_tokens.weight'"):
        tied.save_pretrained(tmp_path, state_dict={**tied.state_dict(), **given})
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_an_adapter_is_saved_where_a_tied_tensor_is_not_in_its_first_place(tmp_path: Path, tied: Any) -> None:
    tied.save_pretrained(tmp_path)
    model = LanguageModel.from_pretrained(tmp_path)
    model.set_sources("SST")
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
    model.save_pretrained(tmp_path / "adapter")
    model.teacher.lm_head.weight.add_(1)
    with pytest.raises(SaveError, match=r"teacher.model.embed_tokens.weight was changed"):
        model.save_pretrained(tmp_path / "other")


@torch.no_grad()
def test_plain_transformers_opens_a_tied_teacher(tmp_path: Path, hub: Any, repo_id: str, tied: Any) -> None:
    tied.push_to_hub(repo_id)
    teacher, info = AutoModelForCausalLM.from_pretrained(
        repo_id, subfolder="teacher", output_loading_info=True, cache_dir=tmp_path
    )
    assert not any(info.values())
    assert teacher.lm_head.weight is teacher.model.embed_tokens.weight
    assert torch.equal(own_logits(teacher.eval()), own_logits(tied.teacher))
    grown = LanguageModel.from_pretrained(repo_id, cache_dir=tmp_path)
    grown.set_stage("teacher")
    assert torch.equal(grown(**texts()).logits, own_logits(tied.teacher))


@torch.no_grad()
def test_a_module_that_every_block_needs_has_a_file_of_its_own(tmp_path: Path) -> None:
    model = driven_model("mpnet")
    model.save_pretrained(tmp_path)
    shared = "teacher/shared-mpnet.encoder.relative_attention_bias.safetensors"
    assert shared in files_at(tmp_path)[1]
    growing = PWLForSequenceClassification.from_pretrained(tmp_path)
    growing.set_sources("SST")
    assert torch.equal(growing(**texts()).logits, model(**texts(), sources="SST").logits)
    growing.set_sources("SSS")
    assert sum(p.numel() for p in growing.teacher.parameters()) == 0


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([9], "which must be blocks from 1 to 3, each once and in order"),
        ([1, 1, 3], "which must be blocks from 1 to 3, each once and in order"),
        ([1], r"is shared by blocks \[1\], by config.json it is by \[1, 3\]"),
    ],
)
def test_blocks_that_do_not_share_a_file_are_refused(tmp_path: Path, tied: Any, blocks: list[int], reason: str) -> None:
    tied.save_pretrained(tmp_path)
    index = read_json(tmp_path / "pwl_index.json")
    next(entry for entry in index["stages"][1]["files"] if entry["path"] == TIED)["blocks"] = blocks
    (tmp_path / "pwl_index.json").write_text(json.dumps(index))
    with pytest.raises(RepositoryError, match=reason):
        LanguageModel.from_pretrained(tmp_path, stage=1)


def test_a_save_that_could_not_be_loaded_is_refused(tmp_path: Path, tied: Any) -> None:
    tied.student.resize_token_embeddings(60)
    with pytest.raises(SaveError, match=r"could not be loaded: .* got vocab_size 50 for the teacher and 60"):
        tied.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_networks_of_other_vocabularies_are_refused() -> None:
    teacher, student = config_of("bert", "teacher"), config_of("bert", "student")
    student.vocab_size = 51
    with pytest.raises(Exception, match="same inputs, got vocab_size 50 for the teacher and 51 for the student"):
        PWLForSequenceClassification.config_class(teacher_config=teacher, student_config=student, num_blocks=2)


def test_a_network_that_the_task_does_not_have_is_refused() -> None:
    class Detector(PWLForSequenceClassification):
        task = "AutoModelForObjectDetection"

    networks = {f"{role}_config": config_of("bert", role) for role in ("teacher", "student")}
    config = PWLConfig(**networks, num_blocks=2)
    with pytest.raises(ValueError, match="no network of model_type 'bert' for AutoModelForObjectDetection"):
        Detector(config)
