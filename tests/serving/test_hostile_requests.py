"""Requests that nobody should send: the example server and the handler refuse them, and go on."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pwl_hf.modeling.publishing.endpoints import endpoint_files
from tests.serving.served import png, serving
from tests.slow import slow_but


@pytest.fixture
def client(backend: Any, monkeypatch: pytest.MonkeyPatch):
    """Of the example server, in this process; it raises what the server does."""
    monkeypatch.setenv("PWL_REPO", str(backend.folder))
    monkeypatch.setenv("PWL_RUNTIME", str(int(backend.name == "runtime")))
    from examples import serve

    monkeypatch.setattr(serve, "MOST_BYTES", 100_000)
    with TestClient(serve.app) as client:
        yield client


@pytest.mark.parametrize(
    "query",
    ["-1", "0", "1e3", "abc", "", "-9223372036854775809", "1.5", "true", "%00", "5&top_k=-1", "9" * 5000, "%1b[31m"],
)
def test_number_of_labels_that_cannot_be_is_refused(client, query):
    answer = client.post(f"/predict?top_k={query}", content=png())
    assert answer.status_code == 422


def test_more_labels_than_there_are_are_all_of_them(client):
    for query in ("999", str(2**63), str(10**30)):
        assert len(client.post(f"/predict?top_k={query}", content=png()).json()["predictions"]) > 1


def test_body_that_is_too_long_is_refused(client):
    assert client.post("/predict", content=bytes(100_001)).status_code == 413
    assert client.post("/predict", content=png()).status_code == 200


def encoded(kind: str) -> bytes:
    image, file = Image.open(io.BytesIO(png())), io.BytesIO()
    (image.quantize() if kind == "BLP" else image).save(file, format=kind)
    return file.getvalue()


def damaged(kind: str, count: int = 60) -> list[bytes]:
    chance, sound, found = random.Random(kind), encoded(kind), []
    for _ in range(count):
        content = bytearray(sound)
        for _ in range(chance.choice([1, 2, 8])):
            content[chance.randrange(min(len(content), 200))] = chance.randrange(256)
        found.append(bytes(content[: chance.choice([len(content), chance.randrange(len(content))])]))
    return found


FORMATS = ["BLP", "DDS", "AVIF", "GIF", "TIFF", "WEBP", "PNG", "JPEG", "ICO", "JPEG2000", "PPM", "TGA"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", slow_but(["PNG", "JPEG", "GIF", "TIFF"], FORMATS))
def test_damaged_image_is_answered_or_refused(client, handler, kind):
    for content in damaged(kind):
        assert client.post("/predict", content=content).status_code in (200, 400)
        with contextlib.suppress(ValueError):
            handler({"inputs": content})


def test_client_that_hangs_up_leaves_no_traceback(repository, fresh_env):
    with serving(
        ["-m", "uvicorn", "examples.serve:app", "--port", "0"], {**fresh_env, "PWL_REPO": str(repository)}
    ) as s:
        host, port = s.url.removeprefix("http://").split(":")
        for sent in (b"", b"half of it", png()):
            with socket.create_connection((host, int(port))) as connection:
                head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\n"
                connection.sendall(head.encode() + sent)
        time.sleep(0.3)
        assert s.client.post("/predict", content=png()).status_code == 200
    assert not [line for line in s.log if "Traceback" in line or "Error" in line]


@pytest.fixture(scope="module")
def handler(repository: Path) -> Any:
    namespace: dict[str, Any] = {"__name__": "handler", "__file__": str(repository / "handler.py")}
    exec(compile(endpoint_files()["handler.py"], "handler.py", "exec"), namespace)
    made = namespace["EndpointHandler"](str(repository))
    assert made.model.stream.wait(60)
    return made


PICTURE = png()
BODIES: list[Any] = [
    *(None, [], "x", 5, b"", {}, {1: 2, "a": 3}, {"inputs": None}, {"inputs": ""}, {"inputs": []}, {"inputs": {}}),
    *({"inputs": text} for text in ("é", "\ud800", "====", "data:image/png;base64,", "\x1b[31m")),
    *({"inputs": PICTURE, "parameters": wrong} for wrong in ([1], "x", 5, True, {1: 2}, {1: 1, "a": 2}, {"k": 1})),
    *(
        {"inputs": PICTURE, "parameters": {"top_k": wrong}}
        for wrong in ("x", "3", None, -1, 0, 1e400, float("nan"), True, 2.5, [1], {}, -(10**30))
    ),
]


@pytest.mark.parametrize("body", BODIES, ids=[f"body {i}" for i in range(len(BODIES))])
def test_malformed_body_of_the_handler_is_a_value_error(handler, body):
    with pytest.raises(ValueError):  # noqa: PT011
        handler(body)


def test_handler_made_before_a_fork_answers_after_it(handler):
    right = handler({"inputs": PICTURE})
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        try:
            found = handler({"inputs": PICTURE})
            os._exit(0 if [item["label"] for item in found] == [item["label"] for item in right] else 3)
        except BaseException:
            os._exit(4)
    assert os.waitpid(process, 0)[1] == 0
