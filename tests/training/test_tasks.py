"""The scripts over texts, words and sounds: from files to a repository that transformers' pipelines open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, BertModel, GPT2Config, GPT2Tokenizer, pipeline

from pwl_hf.data import DataError, DataSource, open_split
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.opening import open_model
from pwl_hf.training import train as script
from pwl_hf.training import train_teacher as teacher_script
from pwl_hf.training.networks.building import derived_config, fresh
from pwl_hf.training.networks.network_arguments import TaskArguments
from pwl_hf.training.networks.presets import PRESETS, preset_overrides
from pwl_hf.training.networks.processing import processing_for
from tests.data.sounds import encoded, sound_table, tone
from tests.modeling.texts import bert_tokenizer
from tests.modeling.types import AUDIO, TEXT, network_config
from tests.slow import slow_but

TEXTS = ["good film", "bad film", "a very good w1", "very bad", "good w2", "bad a w3 w4 w5", "good good", "bad"]
# A window of the spectrogram is 400 samples.
RATE = 4000
TAGS = ["O", "B-PER", "I-PER"]
QUICK = ["--max_steps", "4", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "4"]
QUICK += ["--learning_rate", "1e-2", "--save_strategy", "no", "--report_to", "none", "--eval_split", "train"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
WORDS_SIZE = SIZE | {"vocab_size": 50, "max_position_embeddings": 40}
SOUND_SIZE = SIZE | {"num_mel_bins": 8, "max_length": 24, "patch_size": 4, "time_stride": 4, "frequency_stride": 4}


def teach(folder: Path, *options: str) -> dict[str, float]:
    return teacher_script.train_teacher(
        teacher_script.command_line().parse([*QUICK, *options, "--output_dir", str(folder)])
    )


def train(folder: Path, *options: str) -> list[float]:
    return script.train(script.command_line().parse([*QUICK, *options, "--output_dir", str(folder)]))


def overrides(size: dict[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in size.items()]


class Task:
    """Data of a task, and the options of a tiny teacher."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.data = folder / "data"
        self.data.mkdir()
        path = self.data / "train.parquet"
        if name == "audio-classification":
            waves = [tone(60 if i % 2 else 200, 0.15 + 0.01 * i, RATE) for i in range(8)]
            sound_table(path, [encoded(wave, RATE) for wave in waves], [i % 2 for i in range(8)], ["high", "low"])
            network = ["--model_type", "audio-spectrogram-transformer", "--sampling_rate", str(RATE)]
            size = SOUND_SIZE
        else:
            bert_tokenizer(folder / "words").save_pretrained(folder / "tokenizer")
            network = ["--task", name, "--model_type", "bert", "--tokenizer", str(folder / "tokenizer")]
            size = WORDS_SIZE
            if name == "text-classification":
                columns: dict[str, Any] = {"text": TEXTS, "label": ["no", "yes"] * 4}
                datasets.Dataset.from_dict(columns).to_parquet(path)
            else:
                words = [text.split() for text in TEXTS]
                labels = [[number % 3 for number, _ in enumerate(row)] for row in words]
                tags = datasets.List(datasets.ClassLabel(names=TAGS))
                features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
                datasets.Dataset.from_dict({"tokens": words, "ner_tags": labels}, features=features).to_parquet(path)
        self.given = ["--dataset", str(self.data)]
        self.teacher = [*self.given, *network, "--config_overrides", *overrides(size)]

    def answers(self, repo: Path, stage: int) -> Any:
        classify = pipeline(self.name, model=str(repo), model_kwargs={"stage": stage})
        return classify({"raw": tone(60, 0.2, RATE), "sampling_rate": RATE} if "audio" in self.name else "good film")


NAMES = ["text-classification", "token-classification", "audio-classification"]


@pytest.fixture(scope="module", params=NAMES)
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Data of a task with a teacher that was trained on it."""
    made = Task(request.param, tmp_path_factory.mktemp(request.param))
    measured = teach(made.folder / "teacher", *made.teacher)
    assert {"eval_accuracy", "eval_macro_f1"} <= measured.keys()
    assert ("eval_span_f1" in measured) is (made.name == "token-classification")
    return made


def test_a_run_ends_with_a_repository_that_pipelines_open(task: Task, tmp_path: Path) -> None:
    narrow = {name: value // 2 for name, value in SIZE.items()}
    options = ["--teacher", str(task.folder / "teacher"), "--num_blocks", "2", *task.given]
    options += ["--student_config_overrides", *overrides(narrow), "--init_student_from_teacher", "spread"]
    options += ["--init_converters", "matched", "--eval_strategy", "steps", "--eval_steps", "2"]
    grouped = [] if task.name == "audio-classification" else ["--train_sampling_strategy", "group_by_length"]
    accuracies = train(tmp_path / "out", *options, *grouped)
    assert len(accuracies) == 3
    manifest = Repository.open(tmp_path / "out").manifest()
    own = ["accuracy", "macro_f1"] + (["span_f1"] if task.name == "token-classification" else [])
    assert [[metric.name for metric in stage.metrics] for stage in manifest.stages] == [own] * 3
    assert [stage.metrics[0].value for stage in manifest.stages] == accuracies
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"pipeline_tag: {task.name}" in card
    assert "type: f1" in card
    assert task.answers(tmp_path / "out", 0) is not None
    # What was trained goes on being trained, as its own task.
    assert len(train(tmp_path / "again", "--model", str(tmp_path / "out"), *task.given)) == 3


@pytest.mark.parametrize("task", slow_but(["text-classification"], NAMES), indirect=True)
def test_a_killed_run_goes_on_as_if_it_had_not_been(task: Task, tmp_path: Path) -> None:
    options = ["--teacher", str(task.folder / "teacher"), "--student_preset", "half", "--num_blocks", "2", *task.given]
    options += ["--save_strategy", "steps", "--save_steps", "2"]
    options += [] if "audio" in task.name else ["--train_sampling_strategy", "group_by_length"]
    train(tmp_path / "whole", *options)
    train(tmp_path / "again", *options, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2"))
    one, other = (open_model(tmp_path / name).state_dict() for name in ("whole", "again"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_options_of_other_tasks_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    made = Task("text-classification", tmp_path)
    for option, reason in (
        (["--augmentation", "flip-crop"], "augmentation is for images, and the task is text-classification, of texts"),
        (["--image_size", "8"], "image_size is for images"),
        (["--sampling_rate", "8000"], "sampling_rate is for sounds"),
    ):
        with pytest.raises(ValueError, match=reason):
            teach(tmp_path / "out", *made.teacher, *option)
    out = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    for options, reason in (
        (["--max_length", "8"], "max_length is for texts and words, and the task is image-classification"),
        (["--train_sampling_strategy", "group_by_length"], "group_by_length needs to know how long samples are"),
    ):
        parsed = teacher_script.command_line().parse(["vit-digits-teacher", *options, *out])
        with pytest.raises(ValueError, match=reason):
            teacher_script.train_teacher(parsed)
    with pytest.raises(ValueError, match="mixup_alpha is for images"):
        script.train(script.command_line().parse(["bert-banking77", "--mixup_alpha", "0.2", *out]))


def test_a_network_of_several_tasks_needs_one(tmp_path: Path) -> None:
    made = Task("text-classification", tmp_path)
    options = [word for word in made.teacher if word not in ("--task", "text-classification")]
    with pytest.raises(
        ValueError, match="bert can be of several tasks: give task as one of text-classification, token"
    ):
        teach(tmp_path / "out", *options)


def test_bad_rows_end_a_run_before_it_trains(tmp_path: Path) -> None:
    made = Task("token-classification", tmp_path)
    rows = {"tokens": [["good", "film"], ["a"]], "labels": [["O"], ["B-PER"]]}
    datasets.Dataset.from_dict(rows).to_parquet(made.data / "train.parquet")
    with pytest.raises(DataError, match=r"row 0 of .* has 2 words in 'tokens' and 1 labels"):
        teach(tmp_path / "out", *made.teacher)
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_a_speaker_is_held_out(tmp_path: Path) -> None:
    columns = {"text": TEXTS, "label": [0, 1] * 4, "speaker": ["ann", "ben", "ann", "cal"] * 2}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")

    source = DataSource(
        str(tmp_path / "train.parquet"), text_column="text", label_column="label", holdout_by="speaker=ann"
    )
    assert [open_split(source, name, "texts").num_rows for name in ("train", "validation")] == [4, 4]
    for wrong, reason in (("speaker=dan", "the column has 'ann', 'ben', 'cal'"), ("age=3", "no column 'age'")):
        with pytest.raises(DataError, match=reason):
            open_split(DataSource(source.name, holdout_by=wrong), "validation", "texts")
    with pytest.raises(DataError, match="holdout_by is COLUMN=VALUE"):
        DataSource("x", holdout_by="speaker")


# --- What prepares samples ----------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_head_keeps_its_tokenizer(tmp_path: Path) -> None:
    made = Task("text-classification", tmp_path)
    BertModel(network_config("bert", "teacher")).save_pretrained(tmp_path / "base")
    bert_tokenizer(tmp_path / "words").save_pretrained(tmp_path / "base")
    options = [*made.given, "--task", made.name, "--model", str(tmp_path / "base"), "--allow_new_head", "true"]
    teach(tmp_path / "teacher", *options)
    assert (tmp_path / "teacher" / "tokenizer.json").is_file()
    assert AutoConfig.from_pretrained(tmp_path / "teacher").id2label == {0: "no", 1: "yes"}
    with pytest.raises(ValueError, match="has a tokenizer of its own: leave it out"):
        teach(tmp_path / "out", *options, "--tokenizer", str(tmp_path / "tokenizer"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"vocab_size": 40}, "has 50 tokens, and the network vocab_size 40"),
        ({"pad_token_id": 3}, "pads with token 0, and the network's pad_token_id is 3"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(fields: dict[str, Any], reason: str, tmp_path: Path) -> None:
    bert_tokenizer(tmp_path).save_pretrained(tmp_path)
    config = network_config("bert", "teacher", **fields)
    with pytest.raises(ValueError, match=reason):
        processing_for("AutoModelForSequenceClassification", None, config, TaskArguments(tokenizer=str(tmp_path)))
    with pytest.raises(ValueError, match="has no tokenizer: give tokenizer"):
        processing_for("AutoModelForSequenceClassification", None, config, TaskArguments())


def test_a_byte_level_tokenizer_reads_words_apart(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "Ġ": 2, "Ġa": 3, "Ġb": 4, "<|endoftext|>": 5}', "utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\nĠ b\n", encoding="utf-8")
    GPT2Tokenizer.from_pretrained(tmp_path, pad_token="<|endoftext|>").save_pretrained(tmp_path / "own")
    config, given = GPT2Config(vocab_size=6, pad_token_id=5), TaskArguments(tokenizer=str(tmp_path / "own"))
    whole, apart = (
        processing_for(task, None, config, given)
        for task in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
    )
    assert (whole("a b")["input_ids"], apart(["a", "b"], is_split_into_words=True)["input_ids"]) == ([0, 4], [3, 4])


def test_plain_extractors_are_of_what_networks_take() -> None:
    task = "AutoModelForAudioClassification"
    spectrogram = processing_for(
        task, None, network_config("audio-spectrogram-transformer", "teacher"), TaskArguments()
    )
    assert (spectrogram.num_mel_bins, spectrogram.max_length, spectrogram.sampling_rate) == (8, 24, 16000)
    waves = processing_for(task, None, network_config("wav2vec2", "teacher"), TaskArguments(sampling_rate=8000))
    assert (waves.sampling_rate, waves.return_attention_mask) == (8000, False)
    layered = network_config("wav2vec2", "teacher", feat_extract_norm="layer")
    assert processing_for(task, None, layered, TaskArguments()).return_attention_mask
    with pytest.raises(ValueError, match="has no feature extractor, and networks of model_type 'wav2vec2-bert'"):
        processing_for(task, None, network_config("wav2vec2-bert", "teacher"), TaskArguments())


@pytest.mark.parametrize("model_type", [*TEXT, *AUDIO])
def test_presets_know_sizes_of_every_type(model_type: str) -> None:
    config = network_config(model_type, "teacher")
    for name in PRESETS:
        student = derived_config(config, preset_overrides(name, config))
        task = "AutoModelForAudioClassification" if model_type in AUDIO else "AutoModelForSequenceClassification"
        with torch.device("meta"):
            network = fresh(student, task)
        parameters = sum(np.prod(tensor.shape) for tensor in network.parameters())
        with torch.device("meta"):
            whole = sum(np.prod(tensor.shape) for tensor in fresh(config, task).parameters())
        assert parameters < whole
