"""A student that has its teacher's embedder: one set of parameters on every path, frozen, and never changed unseen."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from torch import nn

from pwl_hf import PWLConfig, PWLForSequenceClassification, SaveError, Sources, StageError, StateDictError
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.families.registry import family_of
from tests.modeling.driven import LanguageModel, config_of, texts
from tests.modeling.shared_embedders import bert, bert_config, embedder, joined, plain
from tests.modeling.test_types import EVERY, MECHANISMS, given, networks
from tests.modeling.types import model_class
from tests.repository.helpers import weights
from tests.tiny import FAMILIES as BY_HAND

Model = PWLForSequenceClassification

# What BatchNorms keep would be two networks', or no module before the layers has weights.
NOT_SHARED = {
    "resnet": "running_mean",
    "regnet": "running_mean",
    "hgnet_v2": "running_mean",
    "textnet": "running_mean",
    "mobilenet_v1": "running_mean",
    "mobilenet_v2": "running_mean",
    "mobilevit": "running_mean",
    "mobilevitv2": "running_mean",
    "efficientnet": "running_mean",
    "swiftformer": "running_mean",
    "levit": "running_mean",
    "cvt": "has no embedder with weights",
}
FIRST = [name for name in BY_HAND if name in EVERY]
TYPES = [name if name in (*MECHANISMS, *FIRST) else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    joined().save_pretrained(tmp_path / "pwl")
    return tmp_path / "pwl"


def is_one(model: Model) -> bool:
    own = embedder(model.student)
    return all(parameter is own[name] for name, parameter in embedder(model.teacher).items())


# --- The same answers -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_mask_is_that_of_the_two_networks_with_an_embedder_each() -> None:
    shared, apart, (teacher, student) = joined(), joined(share=False), plain()
    assert is_one(shared)
    assert not is_one(apart)
    for mask in map(str, Sources.all(4)):
        assert torch.equal(shared(**texts(), sources=mask).logits, apart(**texts(), sources=mask).logits), mask
    assert torch.equal(shared(**texts(), sources="SSSS").logits, student(**texts()).logits)
    assert torch.equal(shared(**texts(), sources="TTTT").logits, teacher(**texts()).logits)
    paths = shared.shared_paths(texts())
    for mask in ("SSSS", "TSSS", "STTS", "TTTT"):
        assert torch.equal(paths(mask).logits, apart(**texts(), sources=mask).logits)


@torch.no_grad()
@pytest.mark.parametrize("model_type", TYPES)
def test_every_type_shares_or_says_why_not(tmp_path: Path, model_type: str) -> None:
    (teacher, student), kind, inputs = networks(model_type, "teacher"), model_class(model_type), given(model_type)
    if model_type in NOT_SHARED:
        with pytest.raises(InputError, match=f"share_embedder: .*{NOT_SHARED[model_type]}.*: leave"):
            kind.from_teacher_student(teacher, student, num_blocks=2, share_embedder=True)
        return
    alone = copy.deepcopy(student)
    for path in family_of(teacher.config).embedder_paths(teacher.config):
        if path in dict(alone.named_modules()):
            alone.get_submodule(path).load_state_dict(teacher.get_submodule(path).state_dict())
    model = kind.from_teacher_student(teacher, student, num_blocks=2, share_embedder=True).eval()
    assert {*teacher.parameters()} & {*student.parameters()}
    model.save_pretrained(tmp_path)
    grown = kind.from_pretrained(tmp_path)
    assert not grown.parts.networks.has("teacher")
    assert torch.equal(grown(**inputs).logits, alone(**inputs).logits)
    for stage in (1, 2, 0):
        grown.set_stage(stage)
        assert torch.equal(grown(**inputs).logits, model(**inputs, sources=grown.sources).logits)
    model.set_stage(2)
    assert torch.equal(model(**inputs).logits, teacher(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("keep", [(), ("student",), ("teacher",), ("student", "teacher")])
def test_it_is_one_in_memory_at_every_stage_whatever_is_kept(saved: Path, keep: tuple[Any, ...]) -> None:
    model, whole = Model.from_pretrained(saved, keep=keep), joined()
    for stage in (0, 1, 2, 4, 3, 0):
        model.set_stage(stage)
        assert torch.equal(model(**texts()).logits, whole(**texts(), sources=model.sources).logits)
        found = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if "bert.embeddings." in name}
        assert len(found) == 5
    assert is_one(Model.from_pretrained(saved, keep_all=True))


@torch.no_grad()
def test_a_stream_leaves_it_where_it_is(saved: Path) -> None:
    model = Model.from_pretrained(saved)
    before = embedder(model.student)
    with model.stream_stages():
        pass
    assert model.stage == 4
    assert all(parameter is before[name] for name, parameter in embedder(model.teacher).items())
    assert torch.equal(model(**texts()).logits, plain()[0](**texts()).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_goes_with_the_model_into_another_dtype(saved: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    for model in (Model.from_pretrained(saved, keep_all=True, dtype=dtype), joined().to(dtype)):
        assert is_one(model)
        assert {p.dtype for p in model.parameters()} == {dtype}
        model.save_pretrained(tmp_path / "cast")
        again = Model.from_pretrained(tmp_path / "cast", stage=1)
        assert torch.equal(again(**texts()).logits, model(**texts(), sources="TSSS").logits)
    joining = Model.from_teacher_student(plain()[0], plain()[1].to(torch.float16), dtype=dtype, share_embedder=True)
    assert is_one(joining)


@torch.no_grad()
@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_one_of_its_own(saved: Path, how: Callable[[Any], Any]) -> None:
    for model in (joined(), Model.from_pretrained(saved, stage=2)):
        other = how(model)
        if model.parts.is_whole:
            assert is_one(other)
        assert embedder(other.teacher)["LayerNorm.bias"] is not embedder(model.teacher)["LayerNorm.bias"]
        other.set_stage(0)
        other.set_stage(4)
        assert torch.equal(other(**texts()).logits, plain()[0](**texts()).logits)


@torch.no_grad()
def test_low_precision_of_the_first_block_runs_on_it(tmp_path: Path) -> None:
    model, apart = joined(), joined(share=False)
    for joining, name in ((model, "shared"), (apart, "apart")):
        joining.add_tier()
        joining.save_pretrained(tmp_path / name)
    exact = embedder(model.teacher)["word_embeddings.weight"]
    grown = Model.from_pretrained(tmp_path / "shared")
    for stage, sources in enumerate(model.schedule):
        grown.set_stage(stage)
        assert grown.sources == sources
        found = [p for name, p in grown.named_parameters() if name.endswith("word_embeddings.weight")]
        assert len(found) == 1
        assert torch.equal(found[0], exact)
    assert torch.equal(grown(**texts()).logits, plain()[0](**texts()).logits)
    # The other's first block has an embedder that is coarse too.
    grown.set_sources("QSSS")
    coarse = Model.from_pretrained(tmp_path / "apart", stage=1)
    assert coarse.sources == "QSSS"
    assert not torch.equal(coarse(**texts()).logits, grown(**texts()).logits)


# --- What is refused to be joined -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"hidden_size": 8}, "networks of one width, got 16 for the teacher and 8 for the student"),
        ({"max_position_embeddings": 39}, r"is Embedding\(39, 16\) of the student, Embedding\(40, 16\) of the teacher"),
        ({"type_vocab_size": 3}, r"is Embedding\(3, 16\) of the student, Embedding\(2, 16\) of the teacher"),
        ({"layer_norm_eps": 1e-5}, r"is LayerNorm\(.*eps=1e-05.* of the student, .*eps=1e-12.* of the teacher"),
    ],
)
def test_other_widths_and_settings_are_refused_and_the_networks_stay(others: dict[str, Any], why: str) -> None:
    teacher, student = bert(8), bert(4, seed=1, **others)
    before = [{n: (p, p.clone(), p.requires_grad) for n, p in m.named_parameters()} for m in (teacher, student)]
    with pytest.raises((StrictDataclassError, InputError), match=why) as refused:
        Model.from_teacher_student(teacher, student, share_embedder=True)
    assert "share_embedder" in str(refused.value)
    for network, known in zip((teacher, student), before, strict=True):
        for name, parameter in network.named_parameters():
            own, values, requires_grad = known[name]
            assert parameter is own
            assert parameter.requires_grad == requires_grad
            assert torch.equal(parameter, values)
    assert Model.from_teacher_student(teacher, student).num_stages == 4


def test_a_rate_of_dropout_may_be_another() -> None:
    model = Model.from_teacher_student(bert(8), bert(4, hidden_dropout_prob=0.3), share_embedder=True)
    assert model.student.bert.embeddings.dropout.p == 0.3
    assert model.teacher.bert.embeddings.dropout.p == 0.1


def test_other_families_are_refused_by_name() -> None:
    with pytest.raises(StrictDataclassError, match="one model_type, got 'bert' for the teacher and 'distilbert' for"):
        PWLConfig(
            teacher_config=bert_config(8),
            student_config={"model_type": "distilbert", "vocab_size": 50, "dim": 16, "n_heads": 4},
            share_embedder=True,
        )


@pytest.mark.parametrize("tied", ["teacher", "student"])
def test_an_embedder_that_is_tied_to_a_head_is_refused_by_name(tied: str) -> None:
    def language_model(*roles: str) -> LanguageModel:
        ties = {f"{role}_config": role in roles for role in ("teacher", "student")}
        configs = {key: config_of("llama", "teacher", tie_word_embeddings=tie) for key, tie in ties.items()}
        return LanguageModel(PWLConfig(**configs, num_blocks=2, share_embedder=True))

    with pytest.raises(InputError, match=f"the {tied}'s 'model.embed_tokens.weight' is tied to another tensor"):
        language_model(tied)
    model = language_model()
    assert model.student.model.embed_tokens.weight is model.teacher.model.embed_tokens.weight


def test_the_page_counts_the_types_that_share() -> None:
    assert NOT_SHARED.keys() < set(EVERY)
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert (
        f"{len(EVERY) - len(NOT_SHARED)} of the {len(EVERY)} types above do; the other {len(NOT_SHARED)} have" in page
    )


def test_values_of_the_students_own_go_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").propagate = True
    teacher, student = plain()
    Model.from_teacher_student(teacher, student, share_embedder=True)
    assert "the student has the teacher's embedder" not in caplog.text
    with torch.no_grad():
        student = plain()[1]
        student.bert.embeddings.word_embeddings.weight[5, 2] += 1
    Model.from_teacher_student(teacher, student, share_embedder=True)
    assert "in place of its own, which differed in 1 tensor(s), such as bert.embeddings.word_emb" in caplog.text
    caplog.clear()
    # Fresh ones have none of their own.
    Model(PWLConfig(teacher_config=bert_config(8), student_config=bert_config(4), share_embedder=True))
    assert "the student has the teacher's embedder" not in caplog.text


# --- Frozen -----------------------------------------------------------------------------------------------------


def test_it_is_frozen_with_the_teacher(saved: Path) -> None:
    loaded = Model.from_pretrained(saved)
    for model in (joined(), Model.from_pretrained(saved, keep_all=True), loaded):
        for change in (model.train, model.requires_grad_, partial(model.requires_grad_, False), model.requires_grad_):
            change()
            trained = {name for name, p in model.named_parameters() if p.requires_grad}
            assert not any("embeddings" in name for name in trained)
        assert any(name.startswith("student.bert.encoder.layer.0.") for name in trained)
    loaded.load_next_stage()
    loaded.set_stage(0)
    assert not any(p.requires_grad for p in embedder(loaded.student).values())
    assert all(p.requires_grad for p in loaded.student.classifier.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_layer_of_the_student(checkpointing: bool) -> None:
    model = joined().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    for mask in ("SSSS", "TSSS", "STTS"):
        model.zero_grad()
        model(**texts(), labels=torch.tensor([0, 1, 2]), sources=mask).loss.backward()
        for block, letter in enumerate(mask):
            reached = [p.grad is not None for p in model.student.bert.encoder.layer[block].parameters()]
            assert all(reached) if letter == "S" else not any(reached)
    assert all(p.grad is None for p in model.teacher.parameters())


def _stream(model: Model, to: int) -> None:
    with model.stream_stages(until_stage=to):
        pass


# --- Changes ----------------------------------------------------------------------------------------------------


def through(model: Model, role: str) -> nn.Parameter:
    return getattr(model, role).bert.embeddings.word_embeddings.weight


@torch.no_grad()
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("stage", "role", "to"), [(0, "student", 1), (0, "student", 4), (1, "teacher", 0)])
def test_a_change_is_refused_where_the_other_network_would_get_it(
    saved: Path, stage: int, role: str, to: int, streamed: bool
) -> None:
    model = Model.from_pretrained(saved, stage=stage)
    before = through(model, role).clone()
    through(model, role)[5, 2] += 1
    answer = model(**texts()).logits
    move = partial(_stream, model) if streamed and to > stage else model.set_stage
    with pytest.raises(StageError, match=r"embedder \(shared with the student\) was changed .* other network too"):
        move(to)
    assert model.stage == stage
    assert torch.equal(model(**texts()).logits, answer)
    through(model, role).copy_(before)
    model.set_stage(to)
    assert torch.equal(model(**texts()).logits, joined()(**texts(), sources=model.sources).logits)


@torch.no_grad()
@pytest.mark.parametrize("keep", ["student", "teacher"])
def test_a_change_is_refused_where_a_network_that_is_kept_has_it_too(saved: Path, keep: str) -> None:
    model = Model.from_pretrained(saved, keep=(keep,))
    through(model, "student")[5, 2] += 1
    with pytest.raises(StageError, match=r"embedder \(shared with the student\) was changed since it was loaded"):
        model.load_next_stage()
    assert model.stage == 0


@torch.no_grad()
def test_a_change_stays_where_the_first_block_stays(saved: Path) -> None:
    model = Model.from_pretrained(saved, stage=1)
    through(model, "teacher")[5, 2] += 1
    model.set_stage(4)
    assert not torch.equal(model(**texts()).logits, plain()[0](**texts()).logits)
    low = joined()
    low.add_tier()
    low.save_pretrained(saved)
    model = Model.from_pretrained(saved, stage=4)
    assert model.sources == "QQQQ"
    next(p for n, p in model.named_parameters() if n.endswith("word_embeddings.weight"))[5, 2] += 1
    model.set_stage(8)
    assert not torch.equal(model(**texts()).logits, plain()[0](**texts()).logits)


@torch.no_grad()
@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize("stage", [0, 1, None])
def test_a_change_is_saved_as_a_change_of_both(saved: Path, tmp_path: Path, role: str, stage: int | None) -> None:
    if (role, stage) in (("teacher", 0), ("student", 1)):
        return  # It is not there.
    model = Model.from_pretrained(saved, **({"keep_all": True} if stage is None else {"stage": stage}))
    through(model, role)[5, 2] += 1
    model.save_pretrained(tmp_path / "changed")
    before, after = weights(saved), weights(tmp_path / "changed")
    assert {path for path in before if before[path] != after[path]} == {
        "teacher/shared-with-student.safetensors",
        "pwl_index.json",
    }
    for network in plain():
        network.bert.embeddings.word_embeddings.weight[5, 2] += 1
        whole = "teacher" if len(network.bert.encoder.layer) == 8 else 0
        again = Model.from_pretrained(tmp_path / "changed", stage=whole)
        assert torch.equal(again(**texts()).logits, network(**texts()).logits)
    # Saved over its own folder it is no change any more.
    model.save_pretrained(saved)
    model.set_stage(4)
    model.set_stage(0)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_tensor_that_was_put_in_at_one_place_alone_is_refused(saved: Path, tmp_path: Path, role: str) -> None:
    for model in (joined(), Model.from_pretrained(saved, keep_all=True)):
        own = through(model, role)
        getattr(model, role).bert.embeddings.word_embeddings.weight = nn.Parameter(own.detach().clone())
        with pytest.raises(SaveError, match=r"word_embeddings.weight' is not one tensor of teacher and student"):
            model.save_pretrained(tmp_path / "parted")
        assert not (tmp_path / "parted").exists()
    model = Model.from_pretrained(saved, stage=1, keep=("student",))
    getattr(model, role).bert.embeddings.word_embeddings.weight = nn.Parameter(through(model, role).detach().clone())
    with pytest.raises(StageError, match="is not one tensor of teacher and student, as its config says"):
        model.set_stage(0)


def test_a_config_that_was_edited_is_not_saved(tmp_path: Path) -> None:
    for share in (True, False):
        model = joined(share=share)
        model.config.share_embedder = not share
        with pytest.raises(SaveError, match=f"config.share_embedder is {not share}, and it was made with {share}"):
            model.save_pretrained(tmp_path)


def test_the_student_without_its_embedder_is_no_state_dict(saved: Path) -> None:
    # torch names what is at two places by the first: here the teacher's, there the student's.
    for model in (joined(), Model.from_pretrained(saved, keep_all=True)):
        student = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("student.")}
        for state in (student, {name: tensor for name, tensor in student.items() if "embeddings" not in name}):
            with pytest.raises(StateDictError, match="it is the student alone, without its converters"):
                model.load_state_dict(state, strict=False)
        model.load_state_dict(model.state_dict())
        assert is_one(model)


@torch.no_grad()
def test_a_state_dict_may_give_it_by_either_name(saved: Path, tmp_path: Path) -> None:
    model = joined()
    state = model.state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    changed = state[f"student.{name}"] + 1
    for number, names in enumerate((("student",), ("teacher",), ("student", "teacher"))):
        given_once = {n: t for n, t in state.items() if not n.endswith(name)} | {f"{r}.{name}": changed for r in names}
        model.save_pretrained(tmp_path / str(number), state_dict=given_once)
        assert torch.equal(through(Model.from_pretrained(tmp_path / str(number)), "student"), changed)
    with pytest.raises(ValueError, match=f"'student.{name}' and 'teacher.{name}' with different values"):
        model.save_pretrained(tmp_path / "both", state_dict={**state, f"student.{name}": changed})


@torch.no_grad()
def test_the_student_alone_is_whole(tmp_path: Path) -> None:
    model = joined()
    model.student.save_pretrained(tmp_path)
    again = type(model.student).from_pretrained(tmp_path).eval()
    assert torch.equal(again(**texts()).logits, model(**texts(), sources="SSSS").logits)


# --- Adapters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, None])
@pytest.mark.parametrize("how", [{"target_modules": ["word_embeddings"]}, {"modules_to_save": ["LayerNorm"]}])
def test_an_adapter_on_it_is_refused_and_leaves_the_model_as_it_was(saved: Path, stage: Any, how: dict) -> None:
    model = Model.from_pretrained(saved, **({"keep_all": True} if stage is None else {"stage": stage}))
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    config = LoraConfig(r=2, **{"target_modules": ["query"], **how})
    with pytest.raises(StageError, match=r"on the embedder that teacher and student share \(.*: leave it out of the"):
        model.add_adapter(config)
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))


def test_an_adapter_elsewhere_is_saved_and_loaded(saved: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(saved, keep_all=True)
    model.add_adapter(LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    again = Model.from_pretrained(tmp_path / "adapter", keep_all=True)
    for mask in ("SSSS", "TTSS", "TTTT"):
        assert torch.equal(again(**texts(), sources=mask).logits, model(**texts(), sources=mask).logits)
    with torch.no_grad():
        through(model, "student")[5, 2] += 1
    with pytest.raises(SaveError, match=r"word_embeddings.weight was changed since it was loaded"):
        model.save_pretrained(tmp_path / "again")


@torch.no_grad()
def test_an_adapter_that_peft_put_on_it_is_not_lost(saved: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(saved)
    config = LoraConfig(r=2, target_modules=["word_embeddings"], init_lora_weights=False)
    wrapped, lost = get_peft_model(model, config), r"student.*it holds the tensor .*word_embeddings"
    for kept in ((), ("student",)):
        model.parts.keep = frozenset(kept)
        with pytest.raises(StageError, match=lost if not kept else r"shared with .* was changed .*it holds the tensor"):
            model.load_next_stage()
    with pytest.raises(SaveError, match=lost):
        model.save_pretrained(tmp_path / "wrapped")
    answer = wrapped(**texts()).logits
    assert wrapped.merge_and_unload() is model
    torch.testing.assert_close(model(**texts()).logits, answer)
    with pytest.raises(StageError, match=r"embedder \(shared with the student\) was changed since it was loaded"):
        model.set_stage(1)
