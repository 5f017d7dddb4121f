"""Text, token and audio classification: transformers' own losses, outputs, Auto classes and pipelines."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from pwl_hf import (
    PWLConfig,
    PWLForAudioClassification,
    PWLForImageClassification,
    PWLForSequenceClassification,
    PWLForTokenClassification,
    RepositoryError,
)
from pwl_hf.modeling.routes.converters import LeastSquares
from pwl_hf.modeling.task_names import TASKS
from tests.children import python
from tests.modeling.texts import WORDS, bert_tokenizer
from tests.modeling.types import batch, network_config
from tests.slow import slow_but
from tests.task_models import KINDS, NUM_STAGES, sounds, task_model
from tests.tiny import tiny_model

ROWS = [8, 5, 3]


def pair(task: str, teacher: str, student: str | None = None, **others: Any) -> list[Any]:
    auto_class = getattr(transformers, task)
    types = {"teacher": teacher, "student": student or teacher}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [auto_class.from_config(network_config(name, role, **others)).eval() for role, name in types.items()]


def text_model(teacher: str = "bert", student: str | None = None, **others: Any) -> Any:
    networks = pair("AutoModelForSequenceClassification", teacher, student)
    return PWLForSequenceClassification.from_teacher_student(*networks, num_blocks=3, **others).eval()


# --- Losses and outputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (None, torch.tensor([0, 1, 2])),
        ("single_label_classification", torch.tensor([0, 1, 2])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])),
        ("regression", torch.tensor([[0.5, 1, 2], [3, 4, 5], [6, 7, 8]])),
    ],
)
@pytest.mark.parametrize("model_type", ["bert", "llama", "audio-spectrogram-transformer"])
@torch.no_grad()
def test_the_loss_is_that_of_the_network(model_type: str, problem_type: str | None, labels: torch.Tensor) -> None:
    kind: Any = PWLForSequenceClassification if model_type in ("bert", "llama") else PWLForAudioClassification
    networks = pair(kind.task, model_type, problem_type=problem_type)
    model = kind.from_teacher_student(*networks, num_blocks=3).eval()
    inputs = batch(model_type)
    for mask, network in (("TTT", networks[0]), ("SSS", networks[1])):
        expected = copy.deepcopy(network)(**inputs, labels=labels)
        found = model(**inputs, labels=labels, sources=mask)
        assert torch.equal(found.loss, expected.loss)
        assert torch.equal(found.logits, expected.logits)
    assert model.config.problem_type == problem_type


@torch.no_grad()
def test_the_loss_of_tokens_leaves_padding_out() -> None:
    networks = pair("AutoModelForTokenClassification", "bert", "distilbert")
    model, inputs = PWLForTokenClassification.from_teacher_student(*networks, num_blocks=3).eval(), batch("bert")
    labels = torch.full((3, 8), -100)
    for row, length in enumerate(ROWS):
        labels[row, :length] = torch.arange(length) % 3
    for mask, network in (("TTT", networks[0]), ("SSS", networks[1])):
        expected, found = network(**inputs, labels=labels), model(**inputs, labels=labels, sources=mask)
        assert found.logits.shape == (3, 8, 3)
        assert torch.equal(found.logits, expected.logits)
        assert torch.allclose(found.loss, expected.loss)


@torch.no_grad()
def test_outputs_are_as_in_transformers() -> None:
    model, inputs = text_model(), batch("bert")
    found = model(**inputs, output_hidden_states=True, sources="TSS")
    assert type(found) is transformers.modeling_outputs.SequenceClassifierOutput
    assert [tuple(states.shape) for states in found.hidden_states] == [(3, 8, 16), (3, 8, 8), (3, 8, 8)]
    logits, hidden = model(**inputs, output_hidden_states=True, sources="TSS", return_dict=False)
    assert torch.equal(logits, found.logits)
    assert len(hidden) == 3
    pairs = {**inputs, "token_type_ids": (torch.arange(8) > 3).long().expand(3, 8)}
    assert torch.equal(model(**pairs, sources="TTT").logits, model.teacher(**pairs).logits)
    assert not torch.equal(model(**pairs, sources="TTT").logits, model(**inputs, sources="TTT").logits)
    shifted = {**inputs, "position_ids": torch.arange(3, 11).expand(3, 8)}
    assert torch.equal(model(**shifted, sources="TTT").logits, model.teacher(**shifted).logits)


@torch.no_grad()
def test_padding_changes_no_answer() -> None:
    model, inputs = text_model(), batch("bert")
    for mask in ("SSS", "TSS", "TTS", "TTT", "STS"):
        together = model(**inputs, sources=mask).logits
        for row, length in enumerate(ROWS):
            alone = model(input_ids=inputs["input_ids"][row : row + 1, :length], sources=mask).logits
            assert torch.allclose(alone, together[row : row + 1], atol=1e-5), (mask, row)


@pytest.mark.parametrize("model_type", ["bert", "wav2vec2", "sew", "wav2vec2-bert"])
@torch.no_grad()
def test_padding_does_not_count_where_converters_are_fitted(model_type: str) -> None:
    kind: Any = PWLForSequenceClassification if model_type == "bert" else PWLForAudioClassification
    model = kind.from_teacher_student(*pair(kind.task, model_type), num_blocks=3).eval()
    inputs, main = batch(model_type), model.main_input_name
    sounds = {name: tensor.repeat(4, *[1] * (tensor.ndim - 1)) for name, tensor in inputs.items()}
    model.fit_converters(sounds, ridge=1e-3)
    fitted = model.encoders["1"].weight.clone()
    lengths = sounds["attention_mask"].sum(-1)
    route = model._router.of("TTT")
    plan = model.parts.networks.blueprints["teacher"]
    features = route(sounds).outputs[0].tensor
    kept = plan.family.not_padding(plan.config, features, sounds)
    assert kept.shape == features.shape[:2]
    assert kept.sum(-1).tolist() == [_frames(model_type, int(length)) for length in lengths]
    fit = LeastSquares(*reversed(fitted.shape), ridge=1e-3)
    for one, length in zip(_alone(sounds, main), lengths, strict=True):
        ends = [model._router.of(mask)(one).outputs[0].tensor[0] for mask in ("TTT", "SSS")]
        fit.add(*(end[: _frames(model_type, int(length))] for end in ends))
    assert torch.allclose(fit.solve(torch.float32)[0], fitted, atol=1e-4)


def _frames(model_type: str, length: int) -> int:
    if model_type in ("bert", "wav2vec2-bert"):
        return length
    frames = ((length - 10) // 5 + 1 - 3) // 2 + 1
    # The longest sound has 19, of which the last has no other to be squeezed with.
    return min(-(-frames // 2), 9) if model_type == "sew" else frames


def _alone(inputs: dict[str, torch.Tensor], main: str) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor[row : row + 1] for name, tensor in inputs.items()} for row in range(len(inputs[main]))]


def test_the_main_input_is_what_the_networks_call_theirs() -> None:
    for model_type, name in (("wav2vec2", "input_values"), ("wav2vec2-bert", "input_features")):
        networks = pair("AutoModelForAudioClassification", model_type)
        model = PWLForAudioClassification.from_teacher_student(*networks, num_blocks=2)
        assert model.main_input_name == name
        with pytest.raises(ValueError, match=f"the networks take {name}, which was not given"):
            model(attention_mask=torch.ones(1, 4))


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "distilbert", "modernbert", "llama", "gpt2"])
@torch.no_grad()
def test_tokens_are_classified_by_networks_of_every_kind(tmp_path: Path, model_type: str) -> None:
    networks = pair("AutoModelForTokenClassification", model_type)
    whole = PWLForTokenClassification.from_teacher_student(*networks, num_blocks=3).eval()
    whole.save_pretrained(tmp_path)
    model, inputs = AutoModelForTokenClassification.from_pretrained(tmp_path), batch(model_type)
    for mask in ("SSS", "TSS", "TTS", "TTT"):
        model.set_sources(mask)
        assert torch.equal(model(**inputs).logits, whole(**inputs, sources=mask).logits)
    assert torch.equal(model(**inputs).logits, networks[0](**inputs).logits)


# --- Teacher and student of different families ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("bert", "distilbert"),
        ("roberta", "electra"),
        ("mpnet", "bert"),
        ("gpt2", "llama"),
        ("modernbert", "deberta-v2"),
        ("hubert", "wav2vec2"),
        ("wavlm", "unispeech"),
    ],
)
@torch.no_grad()
def test_two_families_that_take_the_same_join(tmp_path: Path, teacher: str, student: str) -> None:
    kind: Any = PWLForAudioClassification if teacher in ("hubert", "wavlm") else PWLForSequenceClassification
    networks = pair(kind.task, teacher, student)
    whole, inputs = kind.from_teacher_student(*networks, num_blocks=3).eval(), batch(teacher)
    whole.save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path)
    assert torch.equal(model(**inputs).logits, networks[1](**inputs).logits)
    for mask in ("TSS", "STS", "TTS", "TTT"):
        model.set_sources(mask)
        assert torch.equal(model(**inputs).logits, whole(**inputs, sources=mask).logits)
    assert torch.equal(model(**inputs).logits, networks[0](**inputs).logits)
    assert type(model.teacher).__name__ == type(networks[0]).__name__


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        ("bert", "wav2vec2", "must be of one family, .* two families join if both take the same, such as token ids"),
        ("wav2vec2", "audio-spectrogram-transformer", "must be of one family"),
        ("wav2vec2", "sew", "must take the same inputs|cannot be joined after block 1: .* a sequence squeezed 2 times"),
    ],
)
def test_families_that_take_other_inputs_are_refused(teacher: str, student: str, reason: str) -> None:
    networks = network_config(teacher, "teacher"), network_config(student, "student")
    with pytest.raises(StrictDataclassError, match=reason):
        PWLConfig(teacher_config=networks[0], student_config=networks[1], num_blocks=2)


# --- What cannot be cut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "setting", "reason"),
    [
        ("wav2vec2", {"use_weighted_layer_sum": True}, "its head reads the output of every layer"),
        ("bert", {"add_cross_attention": True, "is_decoder": True}, "its layers read a second sequence"),
        ("deberta-v2", {"z_steps": 2}, "z_steps is 2, so its last layer runs again"),
        ("bert", {"pad_token_id": 3}, "must take the same inputs, got pad_token_id 3 for the teacher and 0"),
    ],
)
def test_what_reaches_over_blocks_is_refused_by_name(model_type: str, setting: dict[str, Any], reason: str) -> None:
    teacher = network_config(model_type, "teacher", **setting)
    with pytest.raises(StrictDataclassError, match=reason):
        PWLConfig(teacher_config=teacher, student_config=network_config(model_type, "student"), num_blocks=2)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("albert", "model_type 'albert' cannot be cut into blocks: its layers are one module, called again and again"),
        ("bart", "model_type 'bart' cannot be cut into blocks: it has two stacks of layers"),
        ("mixtral", "model_type 'mixtral' cannot be cut into blocks: its experts are saved in other tensors"),
        ("longformer", "model_type 'longformer' cannot be cut into blocks; the supported ones are"),
    ],
)
def test_types_that_cannot_be_cut_are_refused_by_name(model_type: str, reason: str) -> None:
    config = transformers.AutoConfig.for_model(model_type)
    with pytest.raises(StrictDataclassError, match=reason):
        PWLConfig(teacher_config=config, student_config=config, num_blocks=2)
    with pytest.raises(ValueError, match=reason):
        PWLConfig(teacher_config=config.to_dict(), student_config=config.to_dict(), num_blocks=2)


def test_a_student_skips_no_layers_at_random(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("pwl_hf"), "propagate", True)
    teacher, student = pair("AutoModelForSequenceClassification", "opt", layerdrop=0.9)
    model = PWLForSequenceClassification.from_teacher_student(teacher, student, num_blocks=3).train()
    assert "the student's layerdrop was 0.9, and is 0 from now on" in caplog.text
    assert (student.config.layerdrop, model.config.student_config.layerdrop, teacher.config.layerdrop) == (0, 0, 0.9)
    assert model.config.student_config is student.config
    for mask in ("SSS", "STS"):
        model.zero_grad()
        model(**batch("opt"), labels=torch.tensor([0, 1, 2]), sources=mask).loss.backward()
        layers = model.student.model.decoder.layers
        assert all((layers[i].fc1.weight.grad is not None) == (mask[i] == "S") for i in range(3))
    caplog.clear()
    other = network_config("opt", "student", layerdrop=0.5)
    config = PWLConfig(teacher_config=teacher.config, student_config=other, num_blocks=3)
    assert PWLForSequenceClassification(config).student.model.decoder.layerdrop == 0
    assert "was 0.5" in caplog.text
    assert other.layerdrop == 0.5


@torch.no_grad()
def test_a_mask_of_spectra_is_drawn_by_the_first_segment_alone() -> None:
    networks = pair("AutoModelForAudioClassification", "wav2vec2", mask_time_prob=0.5, mask_time_min_masks=2)
    model, inputs = PWLForAudioClassification.from_teacher_student(*networks, num_blocks=3).train(), batch("wav2vec2")
    model.student.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"):
        assert hasattr(model.student.config, name)
    for layer in model.student.wav2vec2.encoder.layers:
        layer.attention.dropout = 0.0
    # The student's segment comes second: nothing of it is masked, so two passes are one.
    assert torch.equal(model(**inputs, sources="TSS").logits, model(**inputs, sources="TSS").logits)
    assert not torch.equal(model(**inputs, sources="SSS").logits, model(**inputs, sources="SSS").logits)


# --- A config's task --------------------------------------------------------------------------------------------


def test_a_repository_is_opened_by_the_class_of_its_task_alone(tmp_path: Path) -> None:
    text_model().save_pretrained(tmp_path / "text")
    tiny_model("vit").save_pretrained(tmp_path / "image")
    assert json.loads((tmp_path / "text" / "config.json").read_text())["task"] == "AutoModelForSequenceClassification"
    message = "the config is of task 'AutoModelForSequenceClassification', the model's class of '{}'"
    for kind in (PWLForTokenClassification, PWLForAudioClassification, PWLForImageClassification):
        with pytest.raises(RepositoryError, match=message.format(kind.task)):
            kind.from_pretrained(tmp_path / "text")
    with pytest.raises(RepositoryError, match="the config is of task 'AutoModelForImageClassification'"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "image")


def test_a_repository_that_names_no_task_is_of_images(tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["task"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert PWLForImageClassification.from_pretrained(tmp_path).config.task == "AutoModelForImageClassification"
    with pytest.raises(RepositoryError, match="is of task 'AutoModelForImageClassification'"):
        PWLForSequenceClassification.from_pretrained(tmp_path)


def test_every_task_has_one_class_that_its_auto_class_knows() -> None:
    for name, task in TASKS.items():
        kind = getattr(__import__("pwl_hf"), task.class_name)
        assert kind.task == name == task.auto_class
        assert getattr(transformers, name)._model_mapping[PWLConfig] is kind
        assert hasattr(transformers, task.processing_class)


# --- Tokenizers, feature extractors, pipelines ------------------------------------------------------------------


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_pipeline_of_texts_takes_the_tokenizer_at_the_root(tmp_path: Path, hub: Any, repo_id: str, task: str) -> None:
    kind: Any = PWLForSequenceClassification if task == "text-classification" else PWLForTokenClassification
    tokenizer = bert_tokenizer(tmp_path / "words")
    model = kind.from_teacher_student(*pair(kind.task, "bert", "distilbert"), num_blocks=3, processing_class=tokenizer)
    model.push_to_hub(repo_id)
    texts = ["a very good film", "bad"]
    cached = AutoTokenizer.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
    assert cached(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    # From the repository to a folder, and on: the files go along.
    loaded = kind.from_pretrained(repo_id, cache_dir=tmp_path / "cache")
    loaded.save_pretrained(tmp_path / "saved")
    kind.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    for stage in (0, 3):
        own = pipeline(task, model=str(tmp_path / "again"), model_kwargs={"stage": stage})
        network = (model.student, model.teacher)[stage == 3]
        expected = pipeline(task, model=network, tokenizer=tokenizer)
        assert type(own.model) is kind
        assert own(texts, batch_size=2) == expected(texts, batch_size=2)
    teacher = pipeline(task, model=str(tmp_path / "again" / "teacher"))
    assert teacher(texts) == pipeline(task, model=model.teacher, tokenizer=tokenizer)(texts)


@pytest.mark.parametrize("model_type", ["wav2vec2", "audio-spectrogram-transformer"])
def test_a_pipeline_of_sounds_takes_the_feature_extractor_at_the_root(tmp_path: Path, model_type: str) -> None:
    extractor: Any = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    others = {}
    if model_type != "wav2vec2":
        extractor, others = ASTFeatureExtractor(num_mel_bins=24, max_length=24), {"num_mel_bins": 24}
    teacher, student = pair("AutoModelForAudioClassification", model_type, **others)
    model = PWLForAudioClassification.from_teacher_student(teacher, student, num_blocks=3, processing_class=extractor)
    model.save_pretrained(tmp_path)
    assert AutoFeatureExtractor.from_pretrained(tmp_path).to_dict() == extractor.to_dict()
    sounds = [np.random.default_rng(seed).normal(size=4000).astype(np.float32) for seed in (0, 1)]
    for stage, network in ((0, student), (3, teacher)):
        own = pipeline("audio-classification", model=str(tmp_path), model_kwargs={"stage": stage})
        expected = pipeline("audio-classification", model=network, feature_extractor=extractor)
        assert own(sounds[0]) == expected(sounds[0])
        assert own([sounds[0], sounds[1][:3000]], batch_size=2) == expected([sounds[0], sounds[1][:3000]], batch_size=2)


def save_network(folder: Path, network: Any, tokenizer: Any) -> Path:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_teachers_tokenizer_is_found_and_the_students_must_be_the_same(tmp_path: Path) -> None:
    teacher, student = pair("AutoModelForSequenceClassification", "bert", "distilbert")
    own = save_network(tmp_path / "teacher", teacher, bert_tokenizer(tmp_path / "words"))
    same = save_network(tmp_path / "same", student, bert_tokenizer(tmp_path / "words"))
    model = PWLForSequenceClassification.from_teacher_student(own, same, num_blocks=3)
    model.save_pretrained(tmp_path / "joined")
    assert (tmp_path / "joined" / "tokenizer.json").read_text() == (own / "tokenizer.json").read_text()
    swapped = [*WORDS[:5], "bad", "good", *WORDS[7:]]
    others = save_network(tmp_path / "others", student, bert_tokenizer(tmp_path / "swapped", swapped))
    with pytest.raises(ValueError, match="one tokenizer, but the token 'bad' is number 6 for the teacher and 5 for"):
        PWLForSequenceClassification.from_teacher_student(own, others, num_blocks=3)
    cased = save_network(tmp_path / "cased", student, bert_tokenizer(tmp_path / "words", do_lower_case=False))
    with pytest.raises(ValueError, match=r"one tokenizer, but of the text .* the teacher's makes"):
        PWLForSequenceClassification.from_teacher_student(own, cased, num_blocks=3)
    # Not known, not compared.
    PWLForSequenceClassification.from_teacher_student(teacher, others, num_blocks=3)


def test_a_tokenizer_that_is_saved_as_more_than_text_is_refused() -> None:
    class Binary:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "tokenizer.model").write_bytes(b"\xff\xfe\xfd")

    with pytest.raises(ValueError, match=r"Binary saves tokenizer\.model, which is no text"):
        text_model(processing_class=Binary())


# --- Dtypes, code, cards ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_cast_on_joining_is_that_of_loading(tmp_path: Path) -> None:
    networks = pair("AutoModelForSequenceClassification", "olmo2")
    model = PWLForSequenceClassification.from_teacher_student(*networks, num_blocks=3, dtype="bfloat16").eval()
    assert model.teacher.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    again = PWLForSequenceClassification.from_pretrained(tmp_path, stage="teacher")
    assert torch.equal(model(**batch("olmo2"), sources="TTT").logits, again(**batch("olmo2")).logits)


@pytest.mark.parametrize("model_type", slow_but(["wavlm"], ["bert", "wavlm"]))
@torch.no_grad()
def test_code_in_the_repository_opens_it_without_the_package(tmp_path: Path, model_type: str) -> None:
    kind: Any = PWLForAudioClassification if model_type == "wavlm" else PWLForSequenceClassification
    model = kind.from_teacher_student(*pair(kind.task, model_type), num_blocks=3).eval()
    model.save_pretrained(tmp_path, remote_code="standalone")
    torch.save(model(**batch(model_type), sources="TTS").logits, tmp_path / "expected.pt")
    torch.save(batch(model_type), tmp_path / "inputs.pt")
    done = python(
        "import sys, torch, transformers\n"
        f"model = transformers.{kind.task}.from_pretrained({str(tmp_path)!r}, trust_remote_code=True, stage=2)\n"
        "assert 'pwl_hf' not in sys.modules\n"
        f"inputs, expected = (torch.load({str(tmp_path)!r} + name) for name in ('/inputs.pt', '/expected.pt'))\n"
        "with torch.no_grad(): print(torch.equal(model(**inputs).logits, expected))\n"
    )
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_the_card_is_of_the_task(tmp_path: Path, hub: Any, repo_id: str) -> None:
    model = text_model(processing_class=bert_tokenizer(tmp_path / "words"))
    model.push_to_hub(repo_id)
    card = Path(hf_hub_download(repo_id, "README.md", cache_dir=tmp_path)).read_text()
    for expected in (
        "pipeline_tag: text-classification",
        "- text-classification",
        "from pwl_hf import PWLForSequenceClassification",
        'classify = pipeline("text-classification"',
        "teacher = AutoModelForSequenceClassification.from_pretrained",
        "measure on your own texts",
    ):
        assert expected in card
    assert "image" not in card.lower()


@pytest.mark.parametrize("kind", ["texts", "tokens", "waves"])
@torch.no_grad()
def test_a_pipeline_answers_while_its_model_grows(tmp_path: Path, hub: Any, repo_id: str, kind: str) -> None:
    task_model(kind, tmp_path / "words").push_to_hub(repo_id)
    task = TASKS[KINDS[kind][0].task].pipeline
    samples: Any = sounds() if kind == "waves" else ["a good film", "bad", "a very bad film w11 w12"]
    whole = pipeline(task, model=repo_id, model_kwargs={"keep_all": True})
    right = []
    for stage in range(NUM_STAGES + 1):
        whole.model.set_stage(stage)
        right.append(whole(samples, batch_size=3))
    grows = pipeline(task, model=repo_id)
    assert grows(samples, batch_size=3) == right[0]
    with grows.model.stream_stages() as stream:
        while not stream.done:
            assert grows(samples, batch_size=3) in right
    assert grows(samples, batch_size=3) == right[-1]
    assert right[0] != right[-1]
