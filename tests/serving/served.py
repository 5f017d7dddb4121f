"""The example server as a process of its own, and a client that asks it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil

from pwl_hf import PWLForImageClassification
from tests.children import Child
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


def save_with_processor(folder: Path) -> Path:
    """A tiny ViT's repository with an image processor, as a deployed one has it."""
    tiny_model("vit").save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def png(seed: int = 0) -> bytes:
    """An image of noise, encoded."""
    pixels = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG")
    return file.getvalue()


@torch.no_grad()
def expected(folder: Path, image: bytes) -> list[list[dict[str, Any]]]:
    """What a model loaded at each stage answers: `[{label, score}]`, best first, on one thread of torch's."""
    inputs = AutoImageProcessor.from_pretrained(folder)(
        Image.open(io.BytesIO(image)).convert("RGB"), return_tensors="pt"
    )
    answers, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for stage in range(5):
            model = PWLForImageClassification.from_pretrained(folder, stage=stage)
            scores = model(**inputs).logits[0].softmax(-1).tolist()
            found = [{"label": model.config.id2label[i], "score": score} for i, score in enumerate(scores)]
            answers.append(sorted(found, key=lambda item: -item["score"]))
    finally:
        torch.set_num_threads(threads)
    return answers


class Served:
    """A running server.

    Args:
        process: Its process, with its log on stderr.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.url = process, ""
        self.log: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(120) or not self.url:
            raise RuntimeError("the server did not start:\n" + "".join(self.log[-30:]))
        self.client = self.new_client()

    def new_client(self) -> httpx2.Client:
        """A client with connections of its own."""
        return httpx2.Client(base_url=self.url, timeout=120, trust_env=False)

    def stage(self) -> dict[str, Any]:
        """What `GET /stage` says."""
        found: dict[str, Any] = self.client.get("/stage").raise_for_status().json()
        return found

    def wait_until(self, wanted: Any, seconds: float = 60) -> dict[str, Any]:
        """Ask for the stage until `wanted` is true of the answer."""
        end = time.monotonic() + seconds
        while not wanted(found := self.stage()):
            assert time.monotonic() < end, f"{found}\n" + "".join(self.log[-30:])
            time.sleep(0.05)
        return found

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(line)
            if found := re.search(r"running on (http://[\d.:]+)", line):
                self.url = found[1]
                self._listening.set()
        self._listening.set()


@contextmanager
def serving(arguments: list[str], env: Mapping[str, str], python: Path | None = None) -> Iterator[Served]:
    """Run Python with these arguments in the checkout until the block ends.

    Args:
        arguments: The arguments.
        env: The environment.
        python: The interpreter; the tests' own by default.
    """
    kind, command = (Child, sys.executable) if python is None else (subprocess.Popen, str(python))
    process = kind([command, *arguments], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    with running(process) as served:
        yield served


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[Served]:
    """A server's process, which ends with the block."""
    try:
        yield (served := Served(process))
        served.client.close()
    finally:
        process.terminate()
        process.wait(60)
