"""A classifier of images, texts, tokens or sounds for AWS Lambda that grows between invocations.

The handler is `lambda_function.handler`, behind a function URL or an HTTP API (payload format 2.0):

    curl -H "Content-Type: image/png" --data-binary @cat.png $FUNCTION_URL   # {"stage": 0, "predictions": [...]}
    curl -H "Content-Type: audio/wav" --data-binary @bark.wav $FUNCTION_URL
    curl --json '{"inputs": "a good film", "parameters": {"top_k": 2}}' $FUNCTION_URL
    curl $FUNCTION_URL                                                       # {"stage": 0, "num_stages": 4}

Requests and answers are those of the server, examples/serve.py.

Stage 0 is loaded while Lambda initialises the function. Lambda then freezes the whole environment as soon as an answer
is out: a thread that streams would stand still between requests while its connections time out, and take its cores from
the requests that it runs beside. To load a stage before answering would let somebody wait for it. So the function
registers an internal extension: Lambda sends the answer, and freezes the environment only when the extension says that
it is done, which is when one more stage is in. Meanwhile the environment gets no request; Lambda starts another if it
must. The time is billed, and ends before the function's timeout: a stage that does not come until then is given up, and
tried again some time later. Let the timeout be 5 s more than a stage takes.

From the environment: PWL_REPO, a Hub id; PWL_REVISION, its branch, tag or commit; PWL_BAKED, a cache in the image
that `HF_HOME=... pwl-hf download` has filled, copied to /tmp, the only place that can be written to; PWL_MOST_SECONDS,
the longest sound (60); HF_TOKEN.
"""

import base64
import binascii
import json
import logging
import os
import re
import shutil
import threading
import time
from http.client import HTTPConnection
from queue import SimpleQueue
from typing import Any

# huggingface_hub reads these when it is imported.
HOME = os.environ.setdefault("HF_HOME", "/tmp/huggingface")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Lambda may begin again where it was cut short: what is there is whole.
if "PWL_BAKED" in os.environ and not os.path.exists(HOME):
    shutil.rmtree(f"{HOME}.part", ignore_errors=True)
    shutil.copytree(os.environ["PWL_BAKED"], f"{HOME}.part", symlinks=True)
    os.rename(f"{HOME}.part", HOME)

from pwl_hf import runtime  # noqa: E402
from pwl_hf.serving import RequestReader  # noqa: E402

# Seconds before the function's timeout at which growing is given up: a block being attached is awaited.
MARGIN = float(os.environ.get("PWL_MARGIN_SECONDS", "4"))
FIRST_PAUSE, LONGEST_PAUSE = float(os.environ.get("PWL_RETRY_SECONDS", "30")), 600.0
log = logging.getLogger()
model = runtime.load(os.environ["PWL_REPO"], revision=os.environ.get("PWL_REVISION") or None)
requests = RequestReader(model.task, float(os.environ.get("PWL_MOST_SECONDS", "60")))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one request: what Lambda calls.

    Args:
        event: The request, in payload format 2.0.
        context: Lambda's; it knows how much time is left.

    Returns:
        The answer in the same format: 200, or 400 and what is wrong with the request.
    """
    try:
        if event["requestContext"]["http"]["method"] == "GET":
            return answer(200, {"stage": model.stage, "num_stages": model.num_stages})
        return answer(200, classify(event))
    except ValueError as error:
        return answer(400, {"detail": str(error)})
    finally:
        answered.put(time.monotonic() + context.get_remaining_time_in_millis() / 1000)


def classify(event: dict[str, Any]) -> dict[str, Any]:
    """The stage, and what transformers' pipeline of the task answers.

    Raises:
        ValueError: If the request cannot be answered.
    """
    asked = (event.get("queryStringParameters") or {}).get("top_k", "5")
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", asked):
        raise ValueError(f"top_k must be a whole number from 1 on, got {asked!r:.100}")
    samples, parameters = requests.read(body_of(event), is_json=is_json(event), top_k=int(asked))
    # Nothing grows meanwhile: Lambda sends no request while the extension is at work.
    return {"stage": model.stage, "predictions": model.predict(samples, **parameters)}


def is_json(event: dict[str, Any]) -> bool:
    """Whether the request's type says that its body is JSON."""
    given = (event.get("headers") or {}).get("content-type", "")
    return str(given).partition(";")[0].strip() == "application/json"


def body_of(event: dict[str, Any]) -> bytes:
    """The body as it was sent: Lambda hands over text as it is, and anything else in base64."""
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        if not is_json(event) and model.task in ("image-classification", "audio-classification"):
            raise ValueError("the body is text: send a file's bytes, with its type, such as 'Content-Type: image/png'")
        return body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the body is no base64: {error}") from error


def answer(status: int, content: dict[str, Any]) -> dict[str, Any]:
    """An answer of JSON in payload format 2.0."""
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": json.dumps(content)}


class Extension(threading.Thread):
    """Lambda's internal extension: keeps the environment awake after an answer, until one more stage is in.

    Args:
        address: Of the Lambda API, `host:port`.
    """

    def __init__(self, address: str) -> None:
        super().__init__(name="pwl-extension", daemon=True)
        self.address = address
        # Now, while the function is initialised: later Lambda takes no more extensions.
        registered = {"Lambda-Extension-Name": "pwl-grow", "Content-Type": "application/json"}
        self.identity = self.ask("POST", "register", registered, json.dumps({"events": ["INVOKE"]}))

    def ask(self, method: str, path: str, headers: dict[str, str], body: str | None = None) -> str:
        """Call the Extensions API; returns the extension's identifier, if the answer has it."""
        connection = HTTPConnection(self.address)
        connection.request(method, f"/2020-01-01/extension/{path}", body, headers)
        found = connection.getresponse()
        said = found.read()
        connection.close()
        if found.status != 200:
            raise RuntimeError(f"Lambda's answer to {path!r} was {found.status}: {said!r:.200}")
        return found.headers.get("Lambda-Extension-Identifier", "")

    def run(self) -> None:
        """Wait for an invocation and for its answer, and grow; over and over."""
        pause, not_before = FIRST_PAUSE, 0.0
        while True:
            # Until this is asked Lambda leaves the environment awake, and sends it nothing.
            self.ask("GET", "event/next", {"Lambda-Extension-Identifier": self.identity})
            seconds = answered.get() - time.monotonic() - MARGIN
            if model.stage == model.num_stages or seconds <= 0 or time.monotonic() < not_before:
                continue
            try:
                grow(seconds)
                pause = FIRST_PAUSE
            # An extension that ended would let every later invocation time out.
            except Exception as error:
                log.warning("stays at stage %s, next try after %.1f s: %s", model.stage, pause, error)
                not_before, pause = time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE)


def grow(seconds: float) -> None:
    """Load the next stage.

    Args:
        seconds: How long it may take.

    Raises:
        TimeoutError: If it does not come in time.
        PWLError: If it cannot be had.
    """
    stream = model.stream_stages(until_stage=model.stage + 1)
    if not stream.wait(seconds):
        stream.cancel()
        stream.wait()
        raise TimeoutError(f"the next stage did not come in {seconds:.1f} s, more time than that is not left")
    if stream.exception is not None:
        raise stream.exception


# When the time is up of each invocation that was answered.
answered: SimpleQueue[float] = SimpleQueue()
# Elsewhere, as in a test of the handler alone, it stays at stage 0.
if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    Extension(os.environ["AWS_LAMBDA_RUNTIME_API"]).start()
