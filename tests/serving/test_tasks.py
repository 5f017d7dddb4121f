"""The example server of texts, tokens and sounds, on torch and on the runtime."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from transformers import pipeline

from tests.serving.served import serving
from tests.serving.test_task_handlers import SOUND, WAVE, wav_of
from tests.task_models import LONG, NUM_STAGES, TEXTS, assert_alike, exported_task_model

pytest.importorskip("soundfile")
TASKS = {"texts": "text-classification", "tokens": "token-classification", "waves": "audio-classification"}


@pytest.fixture(scope="module")
def exported_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a task's model with its graphs; not to be written to."""

    return partial(exported_task_model, tmp_path_factory)


@pytest.fixture(scope="module", params=["torch", "runtime"])
def clients(request: pytest.FixtureRequest, exported_of: Any) -> Iterator[Callable[[str], TestClient]]:
    """Of servers in this process, at their last stage."""
    from examples import serve

    opened: dict[str, tuple[TestClient, Any]] = {}
    patch = pytest.MonkeyPatch()

    def of(kind: str) -> TestClient:
        if kind not in opened:
            patch.setenv("PWL_REPO", str(exported_of(kind)))
            patch.setenv("PWL_RUNTIME", str(int(request.param == "runtime")))
            client = TestClient(serve.app)
            client.__enter__()
            opened[kind] = client, serve.app.state.classifier
            opened[kind][1].streams[-1].wait(60)
        client, serve.app.state.classifier = opened[kind]
        return client

    yield of
    for client, classifier in opened.values():
        serve.app.state.classifier = classifier
        client.__exit__(None, None, None)
    patch.undo()


@pytest.fixture(scope="module")
def whole(exported_of: Any) -> Callable[[str], Any]:
    """transformers' pipeline over the teacher."""

    @cache
    def of(kind: str) -> Any:
        return pipeline(TASKS[kind], model=str(exported_of(kind) / "teacher"))

    return of


REQUESTS: list[tuple[str, Any, dict[str, Any]]] = [
    ("texts", TEXTS[0], {"top_k": 2}),
    ("texts", list(TEXTS), {"top_k": 3, "function_to_apply": "sigmoid"}),
    ("texts", {"text": TEXTS[0], "text_pair": TEXTS[1]}, {"top_k": 1}),
    ("tokens", TEXTS[1], {}),
    ("tokens", list(TEXTS), {"aggregation_strategy": "first", "ignore_labels": []}),
    ("tokens", LONG, {"aggregation_strategy": "simple", "stride": 3}),
]


@pytest.mark.parametrize(("kind", "inputs", "parameters"), REQUESTS)
def test_texts_are_answered_as_by_the_pipeline(
    clients: Any, whole: Any, kind: str, inputs: Any, parameters: dict[str, Any]
) -> None:
    answer = clients(kind).post("/predict", json={"inputs": inputs, "parameters": parameters})
    assert answer.status_code == 200, answer.text
    assert answer.json()["stage"] == NUM_STAGES
    assert_alike(answer.json()["predictions"], whole(kind)(inputs, **parameters))


def test_long_texts_are_cut_where_asked(clients: Any, whole: Any) -> None:
    body = {"inputs": LONG, "parameters": {"truncation": True}}
    found = clients("texts").post("/predict?top_k=4", json=body).json()["predictions"]
    assert_alike(found, whole("texts")(LONG, top_k=4, truncation=True, max_length=32))


def test_sounds_are_answered_as_by_the_pipeline(clients: Any, whole: Any) -> None:
    client, expected = clients("waves"), whole("waves")(WAVE, top_k=3)
    text = base64.b64encode(wav_of()).decode()
    answers = [
        client.post("/predict?top_k=3", content=wav_of()),
        client.post("/predict?top_k=3", content=wav_of(), headers={"Content-Type": "audio/wav"}),
        client.post("/predict", json={"inputs": text, "parameters": {"top_k": 3}}),
        client.post("/predict?top_k=3", json={"inputs": WAVE.tolist(), "parameters": {"sampling_rate": 16000}}),
        client.post("/predict?top_k=3", json={"inputs": {"raw": WAVE.tolist(), "sampling_rate": 16000}}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert_alike(answer.json()["predictions"], expected)


WRONG: list[tuple[str, Any, str]] = [
    ("texts", b"good film", "the body is no JSON"),
    ("texts", b"\xff\xfe", "the body is no JSON"),
    ("texts", b"[" * 100_000, "the body is no JSON"),
    ("texts", ["a"], "the body must be an object with 'inputs'"),
    ("texts", {"inputs": "a", "more": 1}, "the body must be an object with 'inputs'"),
    ("texts", {"inputs": "a", "parameters": [1]}, "parameters must be an object, got list"),
    ("texts", {"inputs": 5}, "the text must be a string|texts must be strings"),
    ("texts", {"inputs": []}, "has 0 texts"),
    ("texts", {"inputs": ["a"] * 65}, "has 65 texts, it can have 1 to 64"),
    ("texts", {"inputs": "a" * 1_000_001}, "1000001 characters"),
    ("texts", {"inputs": LONG}, "72 tokens, and the model takes 32"),
    ("texts", {"inputs": {"text": "a", "pair": "b"}}, "must be a string, or have 'text'"),
    ("texts", {"inputs": "a", "parameters": {"function_to_apply": "tanh"}}, "function_to_apply|TANH"),
    ("texts", {"inputs": "a", "parameters": {"best": 1}}, "best"),
    ("tokens", {"inputs": {"text": "a", "text_pair": "b"}}, "is a pair"),
    ("tokens", {"inputs": "a", "parameters": {"aggregation_strategy": "best"}}, "aggregation_strategy|BEST"),
    ("tokens", {"inputs": LONG, "parameters": {"stride": 31, "aggregation_strategy": "simple"}}, "stride is 31"),
    ("tokens", {"inputs": LONG, "parameters": {"stride": "3", "aggregation_strategy": "simple"}}, "stride"),
    ("tokens", {"inputs": "a", "parameters": {"top_k": 2}}, "top_k"),
    ("waves", b"no sound", "the body is no sound that can be read"),
    ("waves", b"", "the body is no sound that can be read"),
    ("waves", {"inputs": "https://example.org/a.wav"}, "addresses are not followed"),
    ("waves", {"inputs": [0.1] * 4000}, "a list of samples with their sampling_rate"),
    ("waves", {"inputs": ["a"] * 40, "parameters": {"sampling_rate": 16000}}, "no list of numbers"),
    ("waves", {"inputs": [0.1] * 5, "parameters": {"sampling_rate": 16000}}, "cannot be answered|the network needs 20"),
    ("waves", wav_of(np.zeros(3200), 10), "the sound is of 320.0 s, it can be of 60 s"),
]


@pytest.mark.parametrize(("kind", "body", "message"), WRONG)
def test_what_cannot_be_answered_gets_a_400(clients: Any, kind: str, body: Any, message: str) -> None:
    import re

    if isinstance(body, bytes):
        answer = clients(kind).post("/predict", content=body)
    else:
        answer = clients(kind).post("/predict", json=body)
    assert answer.status_code == 400, answer.text
    assert re.search(message, answer.json()["detail"]), answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("kind", ["texts", "waves"])
@pytest.mark.parametrize("backend", ["torch", "runtime"])
def test_it_grows_while_it_answers(exported_of: Any, fresh_env: dict[str, str], kind: str, backend: str) -> None:
    env = {**fresh_env, "PWL_REPO": str(exported_of(kind)), "PWL_RUNTIME": str(int(backend == "runtime"))}
    sent: dict[str, Any] = {"content": wav_of(SOUND)} if kind == "waves" else {"json": {"inputs": TEXTS[1]}}
    with serving(["-m", "uvicorn", "examples.serve:app", "--port", "0"], env) as served:
        seen: dict[int, str] = {}
        while True:
            answer = served.client.post("/predict", **sent).raise_for_status().json()
            said = json.dumps([item["label"] for item in answer["predictions"]])
            assert seen.setdefault(answer["stage"], said) == said
            if answer["stage"] == NUM_STAGES:
                break
        assert served.wait_until(lambda found: found["done"])["exception"] is None
    assert not [line for line in served.log if "Traceback" in line]
