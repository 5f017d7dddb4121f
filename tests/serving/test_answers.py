"""Handler and example server answer what transformers' pipeline answers, whatever the image and the problem."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessorPil, pipeline

from examples import serve
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.publishing.endpoints import endpoint_files
from tests.data.odd_pictures import ODD, encode, noise, turned
from tests.tiny import tiny_config

Ask = Callable[[bytes], list[list[dict[str, Any]]]]
PROBLEMS = [None, "single_label_classification", "multi_label_classification", "regression"]


def save(folder: Path, *, problem_type: str | None = None, num_labels: int = 5, num_channels: int = 3) -> Path:
    """A tiny ViT of random answers, with its image processor."""
    config = tiny_config("vit", 2)
    for network in (config.teacher_config, config.student_config):
        network.num_labels, network.num_channels, network.problem_type = num_labels, num_channels, problem_type
    config = type(config)(teacher_config=config.teacher_config, student_config=config.student_config, num_stages=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PWLForImageClassification(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    mean = [0.5] * num_channels
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=mean, image_std=mean).save_pretrained(folder)
    return folder


def load_handler(folder: Path) -> Any:
    """The class that an endpoint finds in a repository's handler.py."""
    namespace: dict[str, Any] = {"__name__": "handler", "__file__": str(folder / "handler.py")}
    exec(compile(endpoint_files()["handler.py"], "handler.py", "exec"), namespace)
    return namespace["EndpointHandler"]


@contextmanager
def asking(folder: Path) -> Iterator[Ask]:
    """What the handler answers to bytes, to base64 and to an image, and what the server answers, at the last stage."""
    handler = load_handler(folder)(str(folder))
    assert handler.model.stream.wait(60)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PWL_REPO", str(folder))
        with TestClient(serve.app) as client:
            assert serve.app.state.classifier.streams[-1].wait(60)

            def ask(encoded: bytes) -> list[list[dict[str, Any]]]:
                inputs = (encoded, base64.b64encode(encoded).decode(), Image.open(io.BytesIO(encoded)))
                answer = client.post("/predict?top_k=9", content=encoded)
                assert answer.status_code == 200, answer.text
                answers = [handler({"inputs": found, "parameters": {"top_k": 9}}) for found in inputs]
                return [*answers, answer.json()["predictions"]]

            yield ask
    torch.set_num_threads(threads)


def check(answers: list[list[dict[str, Any]]], expected: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert [item["label"] for item in answer] == [item["label"] for item in expected]
        assert [item["score"] for item in answer] == pytest.approx([item["score"] for item in expected], abs=1e-6)


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [(problem, count) for problem in PROBLEMS for count in (1, 2, 5) if problem != PROBLEMS[1] or count > 1],
)
def test_scores_are_the_pipelines_for_every_problem(tmp_path, problem_type, num_labels):
    folder = save(tmp_path, problem_type=problem_type, num_labels=num_labels)
    encoded = encode(noise("RGB"), "PNG")
    classify = pipeline("image-classification", model=str(folder), model_kwargs={"stage": 2}, device="cpu")
    with asking(folder) as ask:
        check(ask(encoded), classify(Image.open(io.BytesIO(encoded)), top_k=9))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_images_of_every_kind_are_seen_as_the_pipeline_sees_them(tmp_path):
    folder = save(tmp_path)
    classify = pipeline("image-classification", model=str(folder), model_kwargs={"stage": 2}, device="cpu")
    seen = set()
    with asking(folder) as ask:
        for make in ODD.values():
            encoded = make()
            expected = classify(Image.open(io.BytesIO(encoded)), top_k=9)
            check(ask(encoded), expected)
            seen.add(str(expected))
    assert len(seen) > 15, "images that cannot be told apart"


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_networks_of_other_channels_are_asked_in_theirs(tmp_path, num_channels, mode):
    folder = save(tmp_path, num_channels=num_channels)
    processor = AutoImageProcessor.from_pretrained(folder)
    model = PWLForImageClassification.from_pretrained(folder, stage="teacher")
    pairs = [
        (turned(6), noise_turned().convert(mode)),
        (encode(noise("RGBA"), "PNG"), noise("RGBA").convert("RGB").convert("L") if mode == "L" else noise("RGBA")),
    ]
    with asking(folder) as ask:
        for encoded, upright in pairs:
            with torch.no_grad():
                scores = model(**processor(upright, return_tensors="pt")).logits[0].softmax(-1)
            order = scores.argsort(descending=True).tolist()
            check(ask(encoded), [{"label": model.config.id2label[i], "score": scores[i].item()} for i in order])


def noise_turned() -> Image.Image:
    return Image.open(io.BytesIO(turned(6))).transpose(Image.Transpose.ROTATE_270)


def test_networks_of_channels_that_no_image_has_are_refused_at_the_start(tmp_path):
    folder = save(tmp_path, num_channels=5)
    with pytest.raises(ValueError, match="takes images of 5 channels"):
        load_handler(folder)(str(folder))
    with pytest.raises(ValueError, match="takes images of 5 channels"):
        serve.TorchClassifier(str(folder))
