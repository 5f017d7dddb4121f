"""An image classifier behind HTTP that answers from its first second and grows while it serves.

    python examples/serve.py org/pwl-vit          # or: PWL_REPO=org/pwl-vit uvicorn examples.serve:app
    curl --data-binary @cat.png http://127.0.0.1:8000/predict

From the environment: PWL_REPO, a folder or a Hub id; PWL_WORKERS, how many images are classified at once (2);
PWL_RETRY_SECONDS, the first pause after growing has failed (30).
"""

import asyncio
import io
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from PIL import Image
from starlette.requests import ClientDisconnect
from transformers import AutoImageProcessor

from pwl_hf import PWLForImageClassification
from pwl_hf.data.processing import channels_of, check_channels, process, upright

WORKERS = int(os.environ.get("PWL_WORKERS", "2"))
FIRST_PAUSE, LONGEST_PAUSE = float(os.environ.get("PWL_RETRY_SECONDS", "30")), 600.0
MOST_BYTES = 50_000_000
log = logging.getLogger("uvicorn.error")


class Classifier:
    """A model that grows, its image processor, and the streams it has grown by."""

    def __init__(self, repo: str) -> None:
        self.processor = AutoImageProcessor.from_pretrained(repo)
        self.model = PWLForImageClassification.from_pretrained(repo, stream=True)
        self.channels = channels_of(self.model.config.teacher_config)
        check_channels(self.channels)
        self.streams, self.stopped = [self.model.stream], threading.Event()

    def predict(self, body: bytes, top_k: int) -> dict[str, Any]:
        """Classify an encoded image, and say which stage the answer is of."""
        try:
            image = upright(Image.open(io.BytesIO(body)), self.channels)
            pixel_values = process([image], self.processor, self.channels)
        except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error and more
            raise HTTPException(400, f"the body is no image that can be read: {error}") from error
        stage = None
        while stage != self.model.stage:  # a pass that a swap overtook is repeated, to name its stage for certain
            stage = self.model.stage
            with torch.no_grad():
                logits = self.model(pixel_values.to(self.model.device)).logits[0].float()
        scores, classes = self.scores(logits).topk(min(top_k, len(logits)))
        names = [self.model.config.id2label[i] for i in classes.tolist()]
        best = zip(names, scores.tolist(), strict=True)
        return {"stage": stage, "predictions": [{"label": name, "score": score} for name, score in best]}

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of logits, both (K,), by the function that transformers' pipeline chooses."""
        config = self.model.config
        if config.problem_type == "regression":
            return logits
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return logits.sigmoid()
        return logits.softmax(-1)

    def keep_growing(self) -> None:
        """Wait for the stream to end; after a failure go on with a new one, some time later."""
        pause = FIRST_PAUSE
        while (stream := self.streams[-1]).wait() and stream.exception is not None:
            log.warning("stays at stage %s, next try in %.1f s: %s", stream.stage, pause, stream.exception)
            if self.stopped.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)
            self.streams.append(self.model.stream_stages())

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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load stage 0, and only then let the server listen."""
    # Each classifying thread has as many threads of torch's own: together no more than there are cores.
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
    app.state.classifier = classifier = Classifier(os.environ["PWL_REPO"])
    threading.Thread(target=classifier.keep_growing, daemon=True).start()
    with ThreadPoolExecutor(WORKERS) as app.state.pool:
        yield
    classifier.stopped.set()
    classifier.streams[-1].cancel()


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
    return await loop.run_in_executor(app.state.pool, app.state.classifier.predict, bytes(body), top_k)


@app.get("/healthz")
async def healthz() -> dict[str, Any]:
    """Ready from stage 0 on, whatever becomes of the later ones."""
    return {"status": "ok", "stage": app.state.classifier.model.stage}


@app.get("/stage")
async def stage() -> dict[str, Any]:
    """How far the model has grown."""
    return app.state.classifier.growth()


if __name__ == "__main__":
    os.environ["PWL_REPO"] = sys.argv[1]
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
