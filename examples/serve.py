"""An image classifier behind HTTP that answers from its first second and grows while it serves.

    python examples/serve.py org/pwl-vit             # or: PWL_REPO=org/pwl-vit uvicorn examples.serve:app
    python examples/serve.py org/pwl-vit --runtime   # or: PWL_RUNTIME=1, besides
    curl --data-binary @cat.png http://127.0.0.1:8000/predict

With `--runtime` the model runs on `pwl_hf.runtime`, and neither torch nor transformers is imported or needed; the
repository has to hold its graphs (`pwl-hf export`).

From the environment: PWL_REPO, a folder or a Hub id; PWL_REVISION, its branch, tag or commit; PWL_RUNTIME, 1 for the
runtime; PWL_WORKERS, how many images are classified at once (2); PWL_RETRY_SECONDS, the first pause after growing has
failed (30); HOST and PORT, where it listens (127.0.0.1, 8000).
"""

import argparse
import asyncio
import io
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

WORKERS = int(os.environ.get("PWL_WORKERS", "2"))
FIRST_PAUSE, LONGEST_PAUSE = float(os.environ.get("PWL_RETRY_SECONDS", "30")), 600.0
MOST_BYTES = 50_000_000
log = logging.getLogger("uvicorn.error")


class Classifier:
    """A model that grows, and the streams it has grown by.

    Args:
        model: A model that streams: one of `pwl_hf`, or of `pwl_hf.runtime`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.streams, self.stopped = [model.stream], threading.Event()

    def prepare(self, image: Image.Image) -> Any:
        """What `classify` takes; whatever it raises is the image's fault."""
        raise NotImplementedError

    def classify(self, prepared: Any, top_k: int) -> list[dict[str, Any]]:
        """`label` and `score` of the best classes, the best first."""
        raise NotImplementedError

    def predict(self, body: bytes, top_k: int) -> dict[str, Any]:
        """Classify an encoded image, and say which stage the answer is of."""
        try:
            prepared = self.prepare(Image.open(io.BytesIO(body)))
        except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error and more
            raise HTTPException(400, f"the body is no image that can be read: {error}") from error
        stage = None
        while stage != self.model.stage:  # a pass that a swap overtook is repeated, to name its stage for certain
            stage = self.model.stage
            predictions = self.classify(prepared, top_k)
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

        super().__init__(runtime.load(repo, revision=revision, stream=True, threads=threads))

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image, decoded."""
        image.load()
        return image

    def classify(self, prepared: Image.Image, top_k: int) -> list[dict[str, Any]]:
        """As transformers' image-classification pipeline does."""
        predictions: list[dict[str, Any]] = self.model.predict(prepared, top_k=min(top_k, len(self.model.labels)))
        return predictions


class TorchClassifier(Classifier):
    """On torch and transformers.

    Args:
        repo: A folder or a Hub id.
        revision: Its branch, tag or commit.
        threads: Threads of one forward pass; torch has one such number for the whole process.
    """

    def __init__(self, repo: str, revision: str | None = None, threads: int | None = None) -> None:
        import torch
        from transformers import AutoImageProcessor

        from pwl_hf import PWLForImageClassification
        from pwl_hf.data.processing import channels_of, check_channels

        if threads is not None:
            torch.set_num_threads(threads)
        self.processor = AutoImageProcessor.from_pretrained(repo, revision=revision)
        super().__init__(PWLForImageClassification.from_pretrained(repo, revision=revision, stream=True))
        self.channels = channels_of(self.model.config.teacher_config)
        check_channels(self.channels)

    def prepare(self, image: Image.Image) -> Any:
        """Its pixel values, (1, C, H, W)."""
        from pwl_hf.data.processing import process, upright

        return process([upright(image, self.channels)], self.processor, self.channels).to(self.model.device)

    def classify(self, prepared: Any, top_k: int) -> list[dict[str, Any]]:
        """As transformers' image-classification pipeline does."""
        import torch

        with torch.no_grad():
            logits = self.model(prepared).logits[0].float()
        scores, classes = self.scores(logits).topk(min(top_k, len(logits)))
        names = [self.model.config.id2label[i] for i in classes.tolist()]
        return [{"label": name, "score": score} for name, score in zip(names, scores.tolist(), strict=True)]

    def scores(self, logits: Any) -> Any:
        """Scores of logits, both (K,), by the function that transformers' pipeline chooses."""
        config = self.model.config
        if config.problem_type == "regression":
            return logits
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return logits.sigmoid()
        return logits.softmax(-1)


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
    """Classify the image in the body: its bytes as they are, in any format that Pillow reads."""
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
    return await loop.run_in_executor(state.pool, state.classifier.predict, bytes(body), top_k)


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
