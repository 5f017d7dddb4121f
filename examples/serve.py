"""A classifier of images, texts, tokens or sounds behind HTTP that answers from its first second and grows meanwhile.

    python examples/serve.py org/pwl-vit             # or: PWL_REPO=org/pwl-vit uvicorn examples.serve:app
    python examples/serve.py org/pwl-vit --runtime   # or: PWL_RUNTIME=1, besides
    curl --data-binary @cat.png http://127.0.0.1:8000/predict
    curl --json '{"inputs": "a good film", "parameters": {"top_k": 2}}' http://127.0.0.1:8000/predict
    curl --data-binary @bark.wav "http://127.0.0.1:8000/predict?top_k=2"

Images and sounds are the body itself, or base64 in JSON; texts are JSON, as the Hub's own API takes them.

With `--runtime` the model runs on `pwl_hf.runtime`, and neither torch nor transformers is imported or needed; the
repository has to hold its graphs (`pwl-hf export`).

From the environment: PWL_REPO, a folder or a Hub id; PWL_REVISION, its branch, tag or commit; PWL_RUNTIME, 1 for the
runtime; PWL_WORKERS, how many requests are answered at once (2); PWL_RETRY_SECONDS, the first pause after growing has
failed (30); PWL_MOST_SECONDS, the longest sound (60); HOST and PORT, where it listens (127.0.0.1, 8000).
"""

import argparse
import asyncio
import copy
import logging
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from PIL import Image
from starlette.requests import ClientDisconnect

from pwl_hf.serving import RequestReader

WORKERS = int(os.environ.get("PWL_WORKERS", "2"))
FIRST_PAUSE, LONGEST_PAUSE = float(os.environ.get("PWL_RETRY_SECONDS", "30")), 600.0
MOST_BYTES = 50_000_000
MOST_SECONDS = float(os.environ.get("PWL_MOST_SECONDS", "60"))
log = logging.getLogger("uvicorn.error")


class Classifier:
    """A model that grows, and the streams it has grown by.

    Args:
        model: A model that streams: one of `pwl_hf`, or of `pwl_hf.runtime`.
        task: What it does, as the Hub calls it.
    """

    def __init__(self, model: Any, task: str) -> None:
        self.model, self.task = model, task
        self.requests = RequestReader(task, MOST_SECONDS)
        self.streams, self.stopped = [model.stream], threading.Event()

    def classify(self, samples: Any, parameters: dict[str, Any]) -> Any:
        """What transformers' pipeline of the task answers.

        Raises:
            ValueError: If a sample or a parameter is none.
        """
        raise NotImplementedError

    def predict(self, body: bytes, is_json: bool, top_k: int) -> dict[str, Any]:
        """Answer a request, and say which stage the answer is of."""
        try:
            samples, parameters = self.requests.read(body, is_json=is_json, top_k=top_k)
            stage = None
            while stage != self.model.stage:  # a pass that a swap overtook is repeated, to name its stage for certain
                stage = self.model.stage
                predictions = self.classify(samples, parameters)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return {"stage": stage, "predictions": predictions}

    def keep_growing(self) -> None:
        """Wait for the stream to end; after a failure go on with a new one, some time later."""
        pause = FIRST_PAUSE
        while (stream := self.streams[-1]).wait() and stream.exception is not None:
            log.warning("stays at stage %s, next try in %.1f s: %s", stream.stage, pause, stream.exception)
            if self.stopped.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            self.streams.append(self.model.stream_stages())

    def stop(self) -> None:
        """Grow no further."""
        self.stopped.set()
        self.streams[-1].cancel()

    def growth(self) -> dict[str, Any]:
        """How far it has grown; a failure is shown until the next stage is reached."""
        *ended, last = self.streams
        done, stage = last.done and last.exception is None, self.model.stage
        before = sum(stream.bytes_done for stream in ended)
        failed = next((s.exception for s in (last, *reversed(ended)) if s.exception or s.bytes_done), None)
        return {
            "stage": stage,
            "done": done,
            "bytes_done": before + last.bytes_done,
            "bytes_total": before + last.bytes_total,
            "exception": str(failed) if failed else None,
        }


class RuntimeClassifier(Classifier):
    """On `pwl_hf.runtime`: neither torch nor transformers.

    Args:
        repo: A folder or a Hub id; it has to hold its graphs (`pwl-hf export`).
        revision: Its branch, tag or commit.
        threads: Threads of one forward pass.
    """

    def __init__(self, repo: str, revision: str | None = None, threads: int | None = None) -> None:
        from pwl_hf import runtime

        model = runtime.load(repo, revision=revision, stream=True, threads=threads)
        super().__init__(model, model.task)

    def classify(self, samples: Any, parameters: dict[str, Any]) -> Any:
        """As transformers' pipeline of the task does."""
        return self.model.predict(samples, **parameters)


class TorchClassifier(Classifier):
    """On torch and transformers.

    Args:
        repo: A folder or a Hub id.
        revision: Its branch, tag or commit.
        threads: Threads of one forward pass; torch has one such number for the whole process.
    """

    def __init__(self, repo: str, revision: str | None = None, threads: int | None = None) -> None:
        import torch
        import transformers

        from pwl_hf import PWLConfig
        from pwl_hf.modeling.task_names import TASKS
        from pwl_hf.opening import class_of

        if threads is not None:
            torch.set_num_threads(threads)
        config = PWLConfig.from_pretrained(repo, revision=revision)
        task = TASKS[str(config.task)]
        self.processing = getattr(transformers, task.processing_class).from_pretrained(repo, revision=revision)
        self.of_thread = threading.local()
        # Last: it grows from now on.
        model = class_of(config).from_pretrained(repo, revision=revision, stream=True)
        super().__init__(model, task.pipeline)
        if self.task == "image-classification":
            from pwl_hf.data.processing import channels_of, check_channels

            self.channels = channels_of(model.config.teacher_config)
            check_channels(self.channels)
        elif self.task != "audio-classification" and (most := model.config.max_tokens_of(self.processing)) is not None:
            self.processing.model_max_length = most

    def classify(self, samples: Any, parameters: dict[str, Any]) -> Any:
        """As transformers' pipeline of the task does."""
        if self.task == "image-classification":
            return self.classify_image(samples, parameters)
        if self.task == "audio-classification":
            from pwl_hf.runtime.sounds import read_sounds

            ((_, samples),) = read_sounds(samples, self.processing.sampling_rate)
        else:
            self.check_lengths(samples, parameters)
            if self.task == "token-classification":
                # The pipeline cuts at the longest length by itself.
                parameters = {name: value for name, value in parameters.items() if name != "truncation"}
        try:
            answers = self.pipeline()(samples, **parameters)
        except (KeyError, RuntimeError, TypeError) as error:
            # Of parameters, and of what is too short for convolutions, pipelines say what they like.
            raise ValueError(f"cannot be answered: {type(error).__name__}: {error}") from error
        return plain(answers)

    def classify_image(self, image: Image.Image, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """`label` and `score` of the best classes, the best first."""
        import torch

        from pwl_hf.data.processing import process, upright

        top_k = parameters.get("top_k")
        if parameters.keys() - {"top_k"} or isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError("the parameters of an image are top_k, a whole number from 1 on")
        try:
            made = process([upright(image, self.channels)], self.processing, self.channels)
        except Exception as error:
            raise ValueError(f"the body is no image that can be read: {error}") from error
        with torch.no_grad():
            given = {name: value.to(self.model.device) for name, value in made.items()}
            logits = self.model(**given).logits[0].float()
        scores, classes = self.scores(logits).topk(min(top_k, len(logits)))
        names = [self.model.config.id2label[i] for i in classes.tolist()]
        return [{"label": name, "score": score} for name, score in zip(names, scores.tolist(), strict=True)]

    def check_lengths(self, samples: Any, parameters: dict[str, Any]) -> None:
        """Refuse what is no text, and texts that the networks have no positions for."""
        from pwl_hf.runtime.texts import read_texts

        tokenizer, most = self.pipeline().tokenizer, self.processing.model_max_length
        for name, text, pair in read_texts(samples):
            if pair is not None and self.task == "token-classification":
                raise ValueError(f"{name} is a pair, and tokens are those of one text: give a string")
            length = len(tokenizer(text, pair, verbose=False)["input_ids"])
            if length > most and not parameters.get("truncation") and "stride" not in parameters:
                raise ValueError(f"{name} has {length} tokens, and the model takes {most}: give truncation to cut it")
        stride = parameters.get("stride", 0)
        room = most - self.processing.num_special_tokens_to_add()
        if isinstance(stride, bool) or not isinstance(stride, int) or not 0 <= stride < room:
            raise ValueError(f"stride is {stride!r:.100}, it must be from 0 to {room - 1}")

    def pipeline(self) -> Any:
        """A pipeline of this thread's own: a tokenizer is set for each call, so two must not share one."""
        import transformers

        if not hasattr(self.of_thread, "pipeline"):
            name = "feature_extractor" if self.task == "audio-classification" else "tokenizer"
            self.of_thread.pipeline = transformers.pipeline(
                self.task, model=self.model, device=self.model.device, **{name: copy.deepcopy(self.processing)}
            )
        return self.of_thread.pipeline

    def scores(self, logits: Any) -> Any:
        """Scores of logits, both (K,), by the function that transformers' pipeline chooses."""
        config = self.model.config
        if config.problem_type == "regression":
            return logits
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return logits.sigmoid()
        return logits.softmax(-1)


def plain(answers: Any) -> Any:
    """Scores as numbers of Python's, which JSON has."""
    if isinstance(answers, list):
        return [plain(answer) for answer in answers]
    return {**answers, "score": float(answers["score"])}


def load(repo: str, *, on_runtime: bool, revision: str | None = None, workers: int = WORKERS) -> Classifier:
    """A classifier at stage 0, which grows from now on.

    Args:
        repo: A folder or a Hub id.
        on_runtime: Whether it runs on `pwl_hf.runtime`, rather than on torch.
        revision: Its branch, tag or commit.
        workers: How many threads will classify at once: together they have no more threads than there are cores.
    """
    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    kind = RuntimeClassifier if on_runtime else TorchClassifier
    classifier = kind(repo, revision, threads=max(1, cores // workers))
    threading.Thread(target=classifier.keep_growing, daemon=True).start()
    return classifier


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load stage 0, and only then let the server listen."""
    on_runtime = os.environ.get("PWL_RUNTIME") == "1"
    app.state.classifier = load(
        os.environ["PWL_REPO"], on_runtime=on_runtime, revision=os.environ.get("PWL_REVISION") or None
    )
    with ThreadPoolExecutor(WORKERS) as app.state.pool:
        yield
    app.state.classifier.stop()


app = FastAPI(title="A classifier that grows", lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request, top_k: Annotated[int, Query(ge=1)] = 5) -> dict[str, Any]:
    """Answer the request in the body: an image or a sound as it is, or JSON.

    `top_k` is that of the address, unless the JSON has parameters with another.
    """
    body, loop = bytearray(), asyncio.get_running_loop()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                raise HTTPException(413, f"the body is longer than {MOST_BYTES} bytes")
    except ClientDisconnect as error:  # nobody reads this: it keeps a traceback out of the log
        raise HTTPException(400, "the client hung up") from error
    # Not in the event loop itself, which must stay free for the other requests.
    state = request.app.state
    is_json = request.headers.get("content-type", "").partition(";")[0].strip() == "application/json"
    return await loop.run_in_executor(state.pool, state.classifier.predict, bytes(body), is_json, top_k)


@app.get("/healthz")
async def healthz(request: Request) -> dict[str, Any]:
    """Ready from stage 0 on, whatever becomes of the later ones."""
    return {"status": "ok", "stage": request.app.state.classifier.model.stage}


@app.get("/stage")
async def stage(request: Request) -> dict[str, Any]:
    """How far the model has grown."""
    return request.app.state.classifier.growth()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a model that grows.")
    parser.add_argument("repo", metavar="REPO", help="a folder or a Hub id")
    parser.add_argument("--runtime", action="store_true", help="on pwl_hf.runtime: neither torch nor transformers")
    given = parser.parse_args()
    os.environ["PWL_REPO"] = given.repo
    if given.runtime:
        os.environ["PWL_RUNTIME"] = "1"
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))
