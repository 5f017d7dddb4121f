"""The function for AWS Lambda, in Lambda's own runtime client and an environment that is frozen between requests."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import pipeline

from tests.hub import Fault, HubServer
from tests.repository.helpers import bodies, publish, shard
from tests.serving.images import Image, build
from tests.serving.lambda_service import Lambda
from tests.serving.served import expected, png
from tests.serving.test_container import FOLDER, NOWHERE, of_hub
from tests.serving.test_task_handlers import WAVE, wav_of
from tests.serving.test_tasks import TASKS as PIPELINES
from tests.task_models import LONG, NUM_STAGES, TEXTS, assert_alike, exported_task_model

HANDLER = "lambda_function.handler"


@pytest.fixture
def image(
    request: pytest.FixtureRequest,
    hub: HubServer,
    repo_id: str,
    exported: Path,
    fresh_env: dict[str, str],
    tmp_path: Path,
) -> Image:
    """Of a repository's only commit, with the extras of the test's parameter."""
    commit = publish(hub, repo_id, exported)
    arguments = {"REPO": repo_id, "REVISION": commit} | getattr(request, "param", {})
    return build(FOLDER / "lambda.Dockerfile", tmp_path / "image", arguments, of_hub(fresh_env))


def start(image: Image, environment: dict[str, str], timeout: float = 60) -> Lambda:
    assert image.command == [HANDLER]
    variables = image.environment({**environment, "OMP_NUM_THREADS": "1"})
    return Lambda(image.python, HANDLER, Path(image.here("/var/task")), variables, timeout)


def event(body: bytes | str | dict[str, Any] = b"", method: str = "POST", **query: str) -> dict[str, Any]:
    """What a function URL makes of a request; of a dict, one of JSON."""
    encoded = isinstance(body, bytes)
    headers = {"content-type": "application/json; charset=utf-8"} if isinstance(body, dict) else {}
    body = json.dumps(body) if isinstance(body, dict) else body
    return {
        "headers": headers,
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/",
        "requestContext": {"http": {"method": method, "path": "/"}},
        "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body,
        "isBase64Encoded": encoded,
        **({"queryStringParameters": query} if query else {}),
    }


def said(answer: dict[str, Any], status: int = 200) -> dict[str, Any]:
    assert (answer["statusCode"], answer["headers"]) == (status, {"Content-Type": "application/json"})
    found: dict[str, Any] = json.loads(answer["body"])
    return found


def test_function_answers_at_stage_0_and_is_one_stage_further_at_each_invocation(hub, image, repository, fresh_env):
    picture = png()
    right = expected(repository, picture)
    with hub.record() as requests, start(image, of_hub(fresh_env)) as service:
        service.wait_until_frozen()
        assert not bodies(requests), "stage 0 is in the image"
        for stage in (0, 1, 2, 3, 4, 4):
            found = said(service.invoke(event(picture)))
            assert found["stage"] == stage
            assert [item["label"] for item in found["predictions"]] == [item["label"] for item in right[stage]]
            scores = [item["score"] for item in found["predictions"]]
            assert scores == pytest.approx([item["score"] for item in right[stage]], abs=1e-5)
        assert said(service.invoke(event(method="GET"))) == {"stage": 4, "num_stages": 4}
        assert service.extensions == {"pwl-grow": ["INVOKE"]}


def test_answer_is_out_before_the_next_stage_is_fetched(hub, image, fresh_env):
    with start(image, of_hub(fresh_env)) as service:
        service.wait_until_frozen()
        with hub.faulty(Fault("stall", shard(1), seconds=2, times=1)), hub.record() as requests:
            assert said(service.invoke(event(png())))["stage"] == 0
            assert not [r for r in requests if r.file == shard(1) and r.sent]
            service.wait_until_frozen()
        assert said(service.invoke(event(png())))["stage"] == 1


REFUSED = [
    (event("text"), "the body is text"),
    (event(b"no image"), "no image that can be read"),
    ({**event(b""), "body": "%%%"}, "no base64"),
    (event(png(), top_k="0"), "top_k must be a whole number from 1 on, got '0'"),
    (event(png(), top_k="-1"), "top_k must be"),
    (event(png(), top_k="9" * 5000), "top_k must be"),
    (event(png(), top_k="½"), "top_k must be"),
]


def test_request_that_cannot_be_answered_is_400_and_no_hub_is_needed_for_the_others(image):
    with start(image, {**NOWHERE, "PWL_MARGIN_SECONDS": "100"}) as service:
        for asked, told in REFUSED:
            assert told in said(service.invoke(asked), 400)["detail"]
        for top_k, count in (("2", 2), ("999", 5)):
            assert len(said(service.invoke(event(png(), top_k=top_k)))["predictions"]) == count


@pytest.mark.parametrize(
    ("retry", "is_tried"),
    [("3600", False), pytest.param("0", True, marks=pytest.mark.slow)],
    ids=["not at once", "later"],
)
def test_stage_that_does_not_come_is_given_up_before_the_timeout_and_tried_again_later(
    hub, image, fresh_env, retry, is_tried
):
    # Two seconds to grow in, and minutes before the timeout.
    environment = {**of_hub(fresh_env), "PWL_MARGIN_SECONDS": "600", "PWL_RETRY_SECONDS": retry}
    with start(image, environment, timeout=602) as service:
        service.wait_until_frozen()
        with hub.faulty(Fault("stall", shard(1), seconds=3600, times=None)):
            # On a busy machine the answer alone may take these.
            while not any("did not come in" in line for line in service.log):
                assert said(service.invoke(event(png())))["stage"] == 0
                begin = time.monotonic()
                service.wait_until_frozen()
                assert time.monotonic() - begin < 600
        service.timeout = 1200
        with hub.record() as requests:
            assert said(service.invoke(event(png())))["stage"] == 0
            service.wait_until_frozen()
        assert bool(requests) is is_tried
        assert said(service.invoke(event(png())))["stage"] == is_tried


def test_hub_that_fails_leaves_the_function_answering_at_its_stage(hub, image, fresh_env):
    environment = {**of_hub(fresh_env), "PWL_RETRY_SECONDS": "0"}
    with hub.faulty(Fault("status", shard(2), status=403, times=None)), start(image, environment) as service:
        assert [said(service.invoke(event(png())))["stage"] for _ in range(4)] == [0, 1, 1, 1]
        service.wait_until_frozen()
        hub.faults.clear()
        assert [said(service.invoke(event(png())))["stage"] for _ in range(2)] == [1, 2]
    assert any("stays at stage 1" in line and shard(2) in line for line in service.log)


SENT = base64.b64encode(wav_of()).decode()
ANSWERED: dict[str, list[tuple[dict[str, Any], Any, dict[str, Any]]]] = {
    # The request, and what the pipeline is given.
    "texts": [
        (event({"inputs": TEXTS[0], "parameters": {"top_k": 2}}), TEXTS[0], {"top_k": 2}),
        (event(json.dumps({"inputs": list(TEXTS)}).encode(), top_k="3"), list(TEXTS), {"top_k": 3}),
    ],
    "tokens": [
        (
            event({"inputs": TEXTS[1], "parameters": {"aggregation_strategy": "first"}}),
            TEXTS[1],
            {"aggregation_strategy": "first"},
        )
    ],
    "waves": [
        (event(wav_of(), top_k="3"), WAVE, {"top_k": 3}),
        (event({"inputs": SENT, "parameters": {"top_k": 3}}), WAVE, {"top_k": 3}),
        (
            event({"inputs": WAVE.tolist(), "parameters": {"sampling_rate": 16000, "top_k": 1}}),
            WAVE,
            {"top_k": 1},
        ),
    ],
}
WRONG: dict[str, list[tuple[dict[str, Any], str]]] = {
    "texts": [
        (event("good film"), "the body is no JSON"),
        (event({"inputs": "a", "parameters": {"best": 1}}), "unknown 'best'"),
        (event({"inputs": LONG}), "72 tokens, and the model takes 32"),
    ],
    "tokens": [(event({"inputs": "a", "parameters": {"top_k": 2}}), "unknown 'top_k'")],
    "waves": [
        (event("no sound"), "the body is text"),
        (event(b"no sound"), "no sound that can be read"),
        (event(wav_of(np.zeros(3200), 10)), "the sound is of 320.0 s, it can be of 60 s"),
    ],
}


@pytest.mark.slow  # An image of its own, for what the server's tests hold too.
@pytest.mark.parametrize("image", [{"EXTRAS": "runtime,audio"}], indirect=True, ids=["with-audio"])
def test_texts_tokens_and_sounds_are_answered_as_by_the_pipeline(
    image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for kind, answered in ANSWERED.items():
        folder = exported_task_model(tmp_path_factory, kind)
        whole = pipeline(PIPELINES[kind], model=str(folder / "teacher"))
        with start(image, {**NOWHERE, "PWL_REPO": str(folder), "PWL_REVISION": ""}) as service:
            for _ in range(NUM_STAGES):
                service.invoke(event(method="GET"))
            for asked, samples, parameters in answered:
                found = said(service.invoke(asked))
                assert found["stage"] == NUM_STAGES
                assert_alike(found["predictions"], whole(samples, **parameters))
            for asked, told in WRONG[kind]:
                assert told in said(service.invoke(asked), 400)["detail"]


def test_function_that_lacks_what_decodes_sounds_says_so_when_it_starts(
    image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = exported_task_model(tmp_path_factory, "waves")
    environment = {**NOWHERE, "PWL_REPO": str(folder), "PWL_REVISION": ""}
    with start(image, environment) as service, pytest.raises(AssertionError, match="sounds need soundfile"):
        service.wait_until_frozen()
