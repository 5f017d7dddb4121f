"""Texts, tokens and sounds without torch: the answers of transformers' pipelines, at every stage."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import pipeline

import pwl_hf
from pwl_hf import RepositoryError, runtime
from pwl_hf.downloading import download_stages
from pwl_hf.modeling.errors import InputError
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.opening import open_model
from pwl_hf.quantising import quantise_repository
from tests.repository.helpers import edit_json, publish
from tests.runtime.helpers import fresh
from tests.slow import slow_but
from tests.task_models import KINDS, LONG, NUM_STAGES, OF_SOUND, TEXTS, assert_alike, sounds

TASKS = {
    "texts": "text-classification",
    "tokens": "token-classification",
    **dict.fromkeys(OF_SOUND, "audio-classification"),
}
# Graphs of the other sounds take long to make; their features have quick tests of their own.
QUICK = ("texts", "tokens", "waves")


@pytest.fixture(scope="module")
def stages(exported_task: Any) -> Callable[[str], Iterator[tuple[Any, Any]]]:
    """A model of the runtime and transformers' pipeline, at each stage in turn."""

    def of(kind: str) -> Iterator[tuple[Any, Any]]:
        folder = exported_task(kind)
        whole = pipeline(TASKS[kind], model=open_model(folder, keep_all=True), **_processing(folder, kind))
        model = runtime.load(folder, threads=1)
        for stage in range(NUM_STAGES + 1):
            model.set_stage(stage)
            whole.model.set_stage(stage)
            yield model, whole

    return of


def _processing(folder: Path, kind: str) -> dict[str, Any]:
    if kind in ("texts", "tokens"):
        return {"tokenizer": transformers.AutoTokenizer.from_pretrained(folder)}
    return {"feature_extractor": transformers.AutoFeatureExtractor.from_pretrained(folder)}


@pytest.mark.parametrize("parameters", [{"top_k": None}, {"top_k": 2}, {"top_k": 3, "function_to_apply": "sigmoid"}])
def test_texts_are_answered_as_by_the_pipeline(stages: Any, parameters: dict[str, Any]) -> None:
    samples = [*TEXTS, {"text": "good film", "text_pair": "a very bad film"}]
    answers = []
    for model, whole in stages("texts"):
        answers.append(model.predict(samples, **parameters))
        assert_alike(answers[-1], whole(samples, **parameters))
        assert_alike(model.predict(samples[0], **parameters), whole(samples[0], **parameters))
        assert_alike(model.predict(samples[3], **parameters), whole(samples[3], **parameters))
    assert len({json.dumps(answer) for answer in answers}) == NUM_STAGES + 1


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("ignored", [None, [], ["O", "PER"]])
def test_tokens_are_answered_as_by_the_pipeline(stages: Any, strategy: str, ignored: list[str] | None) -> None:
    parameters = {"aggregation_strategy": strategy} | ({} if ignored is None else {"ignore_labels": ignored})
    for model, whole in stages("tokens"):
        samples = ["", *TEXTS, "filmly  badly\tunknownly film"]
        assert_alike(model.predict(samples, **parameters), whole(samples, **parameters))
        assert_alike(model.predict(TEXTS[1], **parameters), whole(TEXTS[1], **parameters))


@pytest.mark.parametrize("strategy", ["simple", "first"])
def test_a_long_text_is_read_in_pieces(stages: Any, strategy: str) -> None:
    for model, whole in stages("tokens"):
        found = model.predict([LONG, "good"], stride=5, aggregation_strategy=strategy, ignore_labels=[])
        expected = whole([LONG, "good"], stride=5, aggregation_strategy=strategy, ignore_labels=[])
        assert_alike(found, expected)
        assert found[0][-1]["end"] == len(LONG)


@pytest.mark.parametrize("kind", slow_but(QUICK, OF_SOUND))
@pytest.mark.parametrize("parameters", [{}, {"top_k": 2}, {"top_k": None, "function_to_apply": "none"}])
def test_sounds_are_answered_as_by_the_pipeline(stages: Any, kind: str, parameters: dict[str, Any]) -> None:
    samples = sounds()
    for model, whole in stages(kind):
        # The pipeline takes None for all labels alone where it is given as the only one.
        expected = [whole(sound, **parameters) for sound in samples]
        # Padding changes a little, as it does in transformers.
        assert_alike([model.predict(sound, **parameters) for sound in samples], expected)
        assert_alike(model.predict(samples[:1], **parameters), expected[:1])


@pytest.mark.parametrize("kind", slow_but(QUICK, ["waves", "features of speech"]))
def test_sounds_in_a_batch_are_as_in_torch(stages: Any, kind: str) -> None:
    samples = sounds()
    for model, whole in stages(kind):
        made = whole.feature_extractor(samples, sampling_rate=16000, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = whole.model(**made).logits.numpy()
        assert np.abs(model.logits(samples) - expected).max() < 1e-5 * np.ptp(expected) + 1e-6


def test_waves_without_a_mask_run_alone(exported_task: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exported_task("waves"), tmp_path / "copy")
    _with_processor(folder, {"return_attention_mask": False})
    model, samples = runtime.load(folder, threads=1), sounds()
    alone = [model.logits(sound)[0] for sound in samples]
    assert np.array_equal(model.logits(samples), np.stack(alone))


def _with_processor(folder: Path, change: dict[str, Any]) -> None:
    """Let index and manifest have another processor, as if it had been exported so."""
    import hashlib

    edit_json(folder / "onnx/index.json", lambda index: index["processor"].update(change))
    content = (folder / "onnx/index.json").read_bytes()

    def fix(manifest: dict[str, Any]) -> None:
        entry = next(entry for entry in manifest["attachments"] if entry["path"] == "onnx/index.json")
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit_json(folder / "pwl_index.json", fix)


# --- Files of sound -------------------------------------------------------------------------------------------------


def wav_of(samples: Any, rate: int = 16000, channels: int = 1) -> bytes:
    """A file of 16 bits."""
    made = io.BytesIO()
    with wave.open(made, "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return made.getvalue()


def test_files_are_decoded_at_the_networks_rate(exported_task: Any, tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    model, (sound, *_) = runtime.load(exported_task("waves"), threads=1), sounds()
    whole = (np.clip(sound, -1, 1) * 32767).astype("<i2").astype(np.float32) / 32768
    expected = model.logits(whole)
    (tmp_path / "bark.wav").write_bytes(wav_of(sound))
    for given in (wav_of(sound), tmp_path / "bark.wav", str(tmp_path / "bark.wav")):
        assert np.array_equal(model.logits(given), expected)
    stereo = np.stack([sound, sound], axis=1)
    assert np.array_equal(model.logits(wav_of(stereo, channels=2)), expected)


def test_other_rates_are_resampled(exported_task: Any) -> None:
    soxr = pytest.importorskip("soxr")
    model, (sound, *_) = runtime.load(exported_task("waves"), threads=1), sounds()
    expected = model.logits(soxr.resample(sound, 8000, 16000))
    assert np.array_equal(model.logits({"array": sound, "sampling_rate": 8000}), expected)
    assert np.array_equal(model.logits({"raw": sound, "sampling_rate": np.int64(8000), "path": None}), expected)
    found = model.predict(sound, sampling_rate=8000)
    assert_alike(found, model.predict({"array": sound, "sampling_rate": 8000}))
    assert not np.array_equal(model.logits(sound), expected)


@pytest.mark.parametrize("name", ["soundfile", "soxr"])
def test_what_reads_sounds_is_named_where_it_is_missing(
    exported_task: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model, (sound, *_) = runtime.load(exported_task("waves"), threads=1), sounds()
    monkeypatch.setitem(sys.modules, name, None)
    given = wav_of(sound) if name == "soundfile" else {"array": sound, "sampling_rate": 8000}
    with pytest.raises(ImportError, match=rf'sounds .*need {name}, .*pip install "pwl-hf\[audio\]"'):
        model.predict(given)
    assert len(model.predict(sound)) == 4


WRONG_SOUNDS: dict[str, tuple[Any, str]] = {
    "none": ([], "there are no sounds"),
    "kind": (5, "sounds must be arrays"),
    "list": ([5], "sound 0 is of type int"),
    "stereo": (np.zeros((1, 2, 3), np.float32), "sound 0 is an array of shape (2, 3)"),
    "whole": (np.zeros(4000, np.int16), "the sound is an array of int16"),
    "empty": (np.zeros(0, np.float32), "the sound has no samples"),
    "nan": ([np.full(4000, np.nan, np.float32)], "sound 0 holds NaN or infinity"),
    "address": ("https://example.org/a.wav", "is an address"),
    "missing": ("no-such.wav", "'no-such.wav', cannot be opened"),
    "bytes": (b"no sound", "the sound cannot be read as a sound"),
    "rate": ({"array": np.zeros(4000, np.float32), "sampling_rate": 0}, "sampling_rate of the sound must be"),
    "fields": ({"array": np.zeros(4000, np.float32)}, "must have 'array' or 'raw', and 'sampling_rate'"),
    "words": ({"array": ["a"], "sampling_rate": 16000}, "array of the sound is no list of numbers"),
}


@pytest.mark.parametrize("kind", WRONG_SOUNDS)
def test_what_is_no_sound_is_named(exported_task: Any, kind: str) -> None:
    sound, message = WRONG_SOUNDS[kind]
    with pytest.raises(InputError, match=re.escape(message)):
        runtime.load(exported_task("waves"), threads=1).predict(sound)


def test_a_sound_shorter_than_a_frame_is_refused(exported_task: Any) -> None:
    model = runtime.load(exported_task("spectrograms"), threads=1)
    with pytest.raises(InputError, match="sound 1 has 399 samples, fewer than a frame of 400"):
        model.predict([np.ones(400, np.float32), np.ones(399, np.float32)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"feature_extractor_type": "ClapFeatureExtractor"},
            "'ClapFeatureExtractor', and the runtime has Wav2Vec2",
        ),
        (
            {"feature_extractor_type": "ASTFeatureExtractor"},
            r"makes input_values of shape \(1024, 128\) of a sound, and the networks take \(-1,\)",
        ),
        ({"sampling_rate": "fast"}, "sampling_rate is 'fast'"),
        ({"padding_side": "left"}, "padding_side is 'left'"),
        ({"feature_size": 2}, "feature_size is 2"),
        ({"padding_value": float("inf")}, "padding_value is inf"),
    ],
)
def test_feature_extractors_that_are_not_known_are_named(
    exported_task: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(exported_task("waves"), tmp_path / "copy")
    _with_processor(folder, change)
    model = runtime.load(folder, threads=1)
    with pytest.raises(RepositoryError, match=message):
        model.predict(sounds())
    mask = np.ones((1, 3000), np.int64)
    assert model.logits(input_values=sounds(1)[0][None], attention_mask=mask).shape == (1, 4)


# --- Parameters and arrays ------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "other": ("texts", {"best": 1}, "text-classification has no parameter 'best', but top_k, function_to_apply"),
    "top_k": ("texts", {"top_k": 0}, "top_k is 0"),
    "function": ("texts", {"function_to_apply": "tanh"}, "function_to_apply is 'tanh', it must be one of none"),
    "truncation": ("texts", {"truncation": "yes"}, "truncation must be true or false, got 'yes'"),
    "tokens": ("tokens", {"top_k": 1}, "token-classification has no parameter 'top_k'"),
    "strategy": ("tokens", {"aggregation_strategy": "best"}, "aggregation_strategy must be one of none, simple"),
    "ignored": ("tokens", {"ignore_labels": "O"}, "ignore_labels must be a list of labels, got 'O'"),
    "stride": ("tokens", {"stride": -1, "aggregation_strategy": "simple"}, "stride must be a whole number"),
    "pieces": ("tokens", {"stride": 2}, "give an aggregation_strategy other than none"),
    "sounds": ("waves", {"top_k": True}, "top_k is True"),
    "rate": ("waves", {"sampling_rate": 8000}, "sampling_rate is for arrays"),
    "images": ("texts", {"sampling_rate": 8000}, "text-classification has no parameter 'sampling_rate'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_parameters_that_cannot_be_are_named(exported_task: Any, kind: str) -> None:
    task, parameters, message = WRONG[kind]
    with pytest.raises(ValueError, match=re.escape(message)):
        runtime.load(exported_task(task), threads=1).predict("no-such-file.wav", **parameters)


def test_tokens_of_pairs_are_refused(exported_task: Any) -> None:
    with pytest.raises(InputError, match="text 1 is a pair"):
        runtime.load(exported_task("tokens"), threads=1).predict(["good", {"text": "a", "text_pair": "b"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_ids": np.ones((1, 4), np.float32)},
            "input_ids must be whole numbers, got float32: make numbers of texts",
        ),
        ({"input_ids": np.ones(4, np.int64)}, "input_ids must be of shape (B, L), got (4,)"),
        ({"input_ids": np.ones((2, 4), np.int64)}, "the arrays are of [1, 2] samples"),
        ({"input_ids": np.ones((1, 5), np.int64)}, "the arrays are of [4, 5] lengths"),
        ({"attention_mask": np.ones((1, 0), np.int64)}, "attention_mask is empty"),
    ],
)
def test_arrays_that_do_not_fit_are_named(exported_task: Any, change: dict[str, Any], message: str) -> None:
    model = runtime.load(exported_task("texts"), threads=1)
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert model.inputs == dict.fromkeys(names, (-1, -1))
    with pytest.raises(InputError, match=re.escape(message)):
        model.logits(**{**{name: np.ones((1, 4), np.int32) for name in names}, **change})
    with pytest.raises(InputError, match="give texts, or each array by its name"):
        model.logits(input_ids=np.ones((1, 4), np.int64))
    with pytest.raises(InputError, match="give texts or 'input_ids', not both"):
        model.logits("good", input_ids=np.ones((1, 4), np.int64))


# --- Growing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", slow_but(QUICK, KINDS))
def test_it_grows_while_it_answers(exported_task: Any, kind: str) -> None:
    samples = sounds() if kind in OF_SOUND else list(TEXTS)
    expected = [runtime.load(exported_task(kind), stage=s, threads=1).logits(samples) for s in range(NUM_STAGES + 1)]
    model = runtime.load(exported_task(kind), threads=1)
    assert model.task == TASKS[kind]
    assert np.array_equal(model.logits(samples), expected[0])
    with model.stream_stages() as stream:
        while not stream.done:
            found = model.logits(samples)
            assert any(np.array_equal(found, one) for one in expected)
    assert model.stage == NUM_STAGES
    assert np.array_equal(model.logits(samples), expected[-1])


@pytest.mark.parametrize("kind", ["texts", "waves"])
def test_it_grows_by_rungs_of_precision(exported_task: Any, tmp_path: Path, kind: str) -> None:
    quantise_repository(str(exported_task(kind)), tmp_path / "repo", target=Target("none"))
    samples = sounds() if kind == "waves" else list(TEXTS)
    model = runtime.load(tmp_path / "repo", threads=1)
    torch_model = open_model(tmp_path / "repo", keep_all=True)
    (made,) = model._task.batches(samples)
    inputs = {name: torch.from_numpy(array) for name, array in made.items()}
    assert model.schedule == ("SS", "QS", "QQ", "TQ", "TT")
    for stage in range(model.num_stages + 1):
        model.set_stage(stage)
        torch_model.set_stage(stage)
        with torch.no_grad():
            expected = torch_model(**inputs).logits.numpy()
        assert np.abs(model.logits(samples) - expected).max() < 1e-5 * np.ptp(expected) + 1e-6, stage


def test_texts_from_the_hub_need_it_no_more(exported_task: Any, hub: Any, repo_id: str, tmp_path: Path) -> None:
    publish(hub, repo_id, exported_task("texts"))
    expected = runtime.load(exported_task("texts"), stage="teacher", threads=1).predict(list(TEXTS))
    model = runtime.load(repo_id, stage="teacher", cache_dir=tmp_path / "cache", threads=1)
    with hub.record() as requests:
        assert model.predict(list(TEXTS)) == expected
    assert not requests
    again = runtime.load(repo_id, stage="teacher", cache_dir=tmp_path / "cache", local_files_only=True, threads=1)
    assert again.predict(list(TEXTS)) == expected


@pytest.mark.parametrize("kind", ["texts", "waves"])
@pytest.mark.parametrize("how", ["download", "prefetch"])
def test_what_was_fetched_ahead_needs_no_hub(
    exported_task: Any, hub: Any, repo_id: str, tmp_path: Path, kind: str, how: str
) -> None:
    publish(hub, repo_id, exported_task(kind))
    if how == "download":
        download_stages(repo_id, 1, cache_dir=tmp_path)
    else:
        pwl_hf.prefetch(repo_id, stage=1, cache_dir=tmp_path).wait(60)
    samples = sounds() if kind == "waves" else list(TEXTS)
    with hub.record() as requests:
        model = runtime.load(repo_id, stage=1, cache_dir=tmp_path, local_files_only=True, threads=1)
        found = model.predict(samples)
        auto_class = transformers.AutoFeatureExtractor if kind == "waves" else transformers.AutoTokenizer
        auto_class.from_pretrained(repo_id, cache_dir=tmp_path, local_files_only=True)
    assert not requests
    assert found == runtime.load(exported_task(kind), stage=1, threads=1).predict(samples)


@pytest.mark.parametrize("kind", slow_but(QUICK, KINDS))
def test_neither_torch_nor_what_reads_files_is_imported(
    exported_task: Any, fresh_env: dict[str, str], kind: str
) -> None:
    sample = "numpy.ones(4000, numpy.float32)" if kind in OF_SOUND else "'a good film'"
    code = f"""
import numpy
from pwl_hf import runtime
model = runtime.load(sys.argv[1], stream=True)
model.predict({sample})
model.stream.wait()
model.predict({sample})
out["stage"] = model.stage
out["others"] = sorted(tops() & {{"soundfile", "soxr", "PIL"}})
out["tokenizers"] = "tokenizers" in tops()
"""
    expected = {"stage": NUM_STAGES, "others": [], "tokenizers": kind in ("texts", "tokens")}
    assert fresh(code, fresh_env, exported_task(kind)) == expected


def test_a_tokenizer_that_is_gone_is_named(exported_task: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(exported_task("texts"), tmp_path / "copy")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RepositoryError, match="not the one that the graphs were exported with"):
        runtime.load(folder, threads=1).predict("good")
