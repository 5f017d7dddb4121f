"""The handler for Inference Endpoints, of texts, tokens and sounds: the pipelines' answers, and refusals."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import snapshot_download
from packaging.requirements import Requirement
from transformers import pipeline

from pwl_hf.modeling.publishing.endpoints import endpoint_files
from pwl_hf.modeling.publishing.push import Target, push_folder
from tests.once import made_once
from tests.repository.helpers import run_python
from tests.serving.test_handler import ENDPOINT
from tests.slow import slow_but
from tests.task_models import KINDS, LONG, NUM_STAGES, TEXTS, sounds, task_model

pytest.importorskip("soundfile")
SOUND = sounds(1)[0]


def wav_of(samples: Any = SOUND, rate: int = 16000) -> bytes:
    """A file of 16 bits and one channel."""
    made = io.BytesIO()
    with wave.open(made, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return made.getvalue()


WAVE = np.frombuffer(wav_of()[44:], "<i2").astype(np.float32) / 32768


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a task's model; not to be written to."""

    @cache
    def of(kind: str) -> Path:
        def make(folder: Path) -> None:
            task_model(kind, folder.parent / f"{folder.name}.words").save_pretrained(folder)

        return made_once(tmp_path_factory, f"handler-{kind}", make)

    return of


@pytest.fixture(scope="module")
def handler(folder_of: Any) -> Callable[[str], Any]:
    """A handler at its last stage."""

    @cache
    def of(kind: str) -> Any:
        namespace: dict[str, Any] = {"__name__": "handler", "__file__": str(folder_of(kind) / "handler.py")}
        exec(compile(endpoint_files()["handler.py"], "handler.py", "exec"), namespace)
        made = namespace["EndpointHandler"](str(folder_of(kind)))
        assert made.model.stream.wait(60)
        assert made.model.stage == NUM_STAGES
        return made

    return of


@pytest.fixture(scope="module")
def whole(folder_of: Any) -> Callable[[str], Any]:
    """transformers' pipeline over the teacher."""

    @cache
    def of(kind: str) -> Any:
        folder, task = folder_of(kind), KINDS[kind][0].task
        name = {"AutoModelForSequenceClassification": "text", "AutoModelForTokenClassification": "token"}.get(
            task, "audio"
        )
        return pipeline(f"{name}-classification", model=str(folder / "teacher"))

    return of


TEXT_REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (TEXTS[0], {}),
    (list(TEXTS), {}),
    (TEXTS[1], {"top_k": 2}),
    (list(TEXTS), {"top_k": 1}),
    (TEXTS[1], {"top_k": 99, "function_to_apply": "sigmoid"}),
    ({"text": TEXTS[0], "text_pair": TEXTS[1]}, {"top_k": 3}),
    ([{"text": TEXTS[0]}, {"text": TEXTS[0], "text_pair": TEXTS[1]}], {"function_to_apply": "none", "top_k": 2}),
    (LONG, {"truncation": True}),
]
TOKEN_REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (TEXTS[1], {}),
    (list(TEXTS), {"aggregation_strategy": "simple"}),
    (list(TEXTS), {"aggregation_strategy": "max", "ignore_labels": []}),
    (LONG, {"aggregation_strategy": "first", "stride": 4}),
]


def same(found: Any, expected: Any) -> bool:
    return json.loads(json.dumps(found)) == json.loads(json.dumps(expected, default=float))


@pytest.mark.parametrize(("inputs", "parameters"), TEXT_REQUESTS)
def test_texts_are_answered_as_by_the_pipeline(handler: Any, whole: Any, inputs: Any, parameters: Any) -> None:
    # As JSON brings them, and as the pipeline of transformers takes them.
    request = json.loads(json.dumps({"inputs": inputs, "parameters": parameters}))
    found = handler("texts")(request)
    if parameters.get("truncation"):
        parameters = {**parameters, "max_length": 32}
    assert same(found, whole("texts")(inputs, **parameters))


@pytest.mark.parametrize(("inputs", "parameters"), TOKEN_REQUESTS)
def test_tokens_are_answered_as_by_the_pipeline(handler: Any, whole: Any, inputs: Any, parameters: Any) -> None:
    found = handler("tokens")({"inputs": inputs, "parameters": parameters})
    assert same(found, whole("tokens")(inputs, **parameters))


@pytest.mark.parametrize("kind", ["waves", "spectrograms"])
@pytest.mark.parametrize("parameters", [{}, {"top_k": 2}, {"function_to_apply": "sigmoid"}])
def test_sounds_are_answered_as_by_the_pipeline(handler: Any, whole: Any, kind: str, parameters: Any) -> None:
    expected = whole(kind)(WAVE, **{"top_k": 5, **parameters})
    text = base64.b64encode(wav_of()).decode()
    for inputs in (wav_of(), text, f"data:audio/wav;base64,{text}"):
        assert same(handler(kind)({"inputs": inputs, "parameters": parameters}), expected)
    raw = {**parameters, "sampling_rate": 16000}
    assert same(handler(kind)({"inputs": WAVE.tolist(), "parameters": raw}), expected)
    given = {"raw": WAVE.tolist(), "sampling_rate": 16000}
    assert same(handler(kind)({"inputs": given, "parameters": parameters}), expected)


def test_sounds_of_other_rates_are_resampled(handler: Any, whole: Any) -> None:
    soxr = pytest.importorskip("soxr")
    eight = np.frombuffer(wav_of(rate=8000)[44:], "<i2").astype(np.float32) / 32768
    expected = whole("waves")(soxr.resample(eight, 8000, 16000), top_k=5)
    assert same(handler("waves")({"inputs": wav_of(rate=8000)}), expected)


def test_threads_share_a_handler(handler: Any) -> None:
    """Each with lengths of its own: transformers' tokenizers are set for each call."""
    made, failures = handler("texts"), []
    right = {n: made({"inputs": "good " * n, "parameters": {"truncation": n > 20}}) for n in (1, 9, 25, 50)}

    def ask(n: int) -> None:
        try:
            for _ in range(30):
                assert made({"inputs": "good " * n, "parameters": {"truncation": n > 20}}) == right[n]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in right]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


WRONG: dict[str, list[tuple[Any, str]]] = {
    "texts": [
        ({"inputs": []}, "has 0 texts, it can have 1 to 64"),
        ({"inputs": ["a"] * 65}, "has 65 texts"),
        ({"inputs": 5}, "text 0 must be a string, or an object with 'text' and 'text_pair', got int"),
        ({"inputs": ["a", None]}, "text 1 must be a string"),
        ({"inputs": [["a", "b"]]}, "text 0 must be a string"),
        ({"inputs": {"text": "a", "pair": "b"}}, "text 0 must be a string"),
        ({"inputs": {"text": "a", "text_pair": 5}}, "text 0 must be a string"),
        ({"inputs": "half \ud83d"}, "text 0 holds half of a character at 5"),
        ({"inputs": LONG}, "text 0 has 72 tokens, and the model takes 1 to 32: .* truncation"),
        ({"inputs": "a" * 1_000_001}, "1000001 characters, it can have 1000000"),
        ({"inputs": "a", "parameters": [1]}, "parameters must be an object, got list"),
        ({"inputs": "a", "parameters": {"k": 1}}, "unknown 'k', expected top_k, function_to_apply, truncation"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, "top_k must be a whole number from 1 on, got 0"),
        ({"inputs": "a", "parameters": {"top_k": "2"}}, "top_k must be a whole number"),
        ({"inputs": "a", "parameters": {"function_to_apply": "tanh"}}, "function_to_apply must be one of none"),
        ({"inputs": "a", "parameters": {"function_to_apply": ["none"]}}, "function_to_apply must be one of none"),
        ({"inputs": "a", "parameters": {"truncation": 1}}, "truncation must be true or false"),
        ({"text": "a"}, r"expected 'inputs', got \['text'\]"),
    ],
    "tokens": [
        ({"inputs": {"text": "a", "text_pair": "b"}}, "text 0 must be a string, got dict"),
        ({"inputs": LONG}, "text 0 has 72 tokens"),
        ({"inputs": LONG, "parameters": {"stride": 4}}, "an aggregation_strategy other than none"),
        ({"inputs": LONG, "parameters": {"stride": 30, "aggregation_strategy": "simple"}}, "it must be below 30"),
        ({"inputs": "a", "parameters": {"aggregation_strategy": "best"}}, "aggregation_strategy must be one of"),
        ({"inputs": "a", "parameters": {"ignore_labels": "O"}}, "ignore_labels must be a list of labels"),
        ({"inputs": "a", "parameters": {"top_k": 1}}, "unknown 'top_k'"),
    ],
    "waves": [
        ({"inputs": b"no sound"}, "no sound that can be read"),
        ({"inputs": wav_of()[:30]}, "no sound that can be read"),
        ({"inputs": "https://example.org/a.wav"}, "addresses are not followed"),
        ({"inputs": None}, "must be the bytes of a sound|give their sampling_rate"),
        ({"inputs": [0.0] * 4000}, "'inputs' are samples: give their sampling_rate"),
        ({"inputs": [[0.0] * 4000], "parameters": {"sampling_rate": 16000}}, "of one channel and finite"),
        ({"inputs": [float("nan")] * 4000, "parameters": {"sampling_rate": 16000}}, "of one channel and finite"),
        ({"inputs": [], "parameters": {"sampling_rate": 16000}}, "of one channel and finite"),
        ({"inputs": ["a"], "parameters": {"sampling_rate": 16000}}, "'inputs' must be the bytes of a sound"),
        ({"inputs": [0.0], "parameters": {"sampling_rate": 0}}, "sampling_rate must be a whole number from 1 on"),
        ({"inputs": {"raw": [0.0]}}, "must have 'array' or 'raw', and 'sampling_rate'"),
        ({"inputs": {"raw": [0.0], "sampling_rate": "x"}}, "sampling_rate must be a whole number"),
        ({"inputs": wav_of(), "parameters": {"sampling_rate": 16000}}, "a file tells its own"),
        ({"inputs": wav_of(np.zeros(3200), 10)}, "longer than 300 s"),
        ({"inputs": [0.1] * 10, "parameters": {"sampling_rate": 16000}}, "cannot take a sound of 10 samples"),
    ],
    "spectrograms": [
        ({"inputs": [0.1] * 10, "parameters": {"sampling_rate": 16000}}, "cannot take a sound of 10 samples")
    ],
}


@pytest.mark.parametrize(
    ("kind", "request_", "message"), [(kind, *case) for kind, cases in WRONG.items() for case in cases]
)
def test_what_cannot_be_answered_is_a_value_error(handler: Any, kind: str, request_: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        handler(kind)(request_)


CALLS = """
requests = json.loads(sys.stdin.readline())
first = handler(requests[0])
assert handler.model.stream.wait(60) and handler.model.stream.exception is None
print(json.dumps({"first": first, "answers": [handler(request) for request in requests],
                  "stage": handler.model.stage, "package": "pwl_hf" in sys.modules}))
"""


@pytest.mark.parametrize("kind", slow_but(["waves"], ["texts", "tokens", "waves"]))
def test_pushed_handler_grows_from_the_disk_without_the_package(
    hub: Any, repo_id: str, folder_of: Any, whole: Any, fresh_env: dict[str, str], tmp_path: Path, kind: str
) -> None:
    push_folder(folder_of(kind), Target(repo_id, inference_handler=True))
    deployed = snapshot_download(repo_id, local_dir=tmp_path / "repository")
    sample = base64.b64encode(wav_of()).decode() if kind == "waves" else TEXTS[1]
    requests = json.dumps([{"inputs": sample}, {"inputs": sample, "parameters": None}])
    environment = {**fresh_env, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    printed = run_python(
        ENDPOINT + CALLS, environment, tmp_path, without_package=True, stdin=f"{deployed}\n{requests}\n"
    )
    found = json.loads(printed.splitlines()[-1])
    right = json.loads(json.dumps(whole(kind)(WAVE if kind == "waves" else TEXTS[1]), default=float))
    assert found["answers"] == [right, right]
    assert found["stage"] == NUM_STAGES
    assert not found["package"]
    names = {Requirement(line).name for line in Path(deployed, "requirements.txt").read_text().splitlines()}
    reading = {"soundfile", "soxr"} if kind == "waves" else {"tokenizers"}
    assert names == {"huggingface_hub", "safetensors", "torch", "transformers", *reading}


def test_a_model_without_a_tokenizer_gets_no_handler(hub: Any, repo_id: str, folder_of: Any, tmp_path: Path) -> None:
    shutil.copytree(folder_of("texts"), tmp_path / "copy", ignore=shutil.ignore_patterns("*token*", "vocab.txt"))
    with pytest.raises(ValueError, match=r"needs a tokenizer, and there is no tokenizer_config\.json"):
        push_folder(tmp_path / "copy", Target(repo_id, inference_handler=True))
