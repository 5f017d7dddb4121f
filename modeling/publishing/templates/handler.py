"""The handler that Hugging Face Inference Endpoints load from the root of a repository.

It answers as the student from the first request on. The whole repository lies on the endpoint's disk, so the
stages come from there, in the background, within seconds. Written by pwl-hf, which need not be installed:
the model's code comes with the repository as well.
"""

from __future__ import annotations

import base64
import io
import logging
import os
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

logger = logging.getLogger(__name__)

# What an image becomes for networks of so many input channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class EndpointHandler:
    """Classifies images.

    Args:
        path: The folder of the repository; the one this file lies in by default.
    """

    def __init__(self, path: str = "") -> None:
        folder = str(path) or os.path.dirname(os.path.abspath(__file__))
        self.processor = AutoImageProcessor.from_pretrained(folder)
        # Code of the repository that this file itself is run from: no more is trusted than before.
        self.model = AutoModelForImageClassification.from_pretrained(
            folder, trust_remote_code=True, stream=True, device_map="auto"
        )
        self._channels = self.model.config.num_channels
        if self._channels not in _MODES:
            raise ValueError(f"the model takes images of {self._channels} channels, which no image has")
        self._failure: BaseException | None = None

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Classify one image.

        Args:
            data: `inputs`, an image, its encoded bytes, or those in base64; and `parameters` if there are any:
                `top_k`, the number of labels (5).

        Returns:
            `label` and `score` of the best classes, the best first, as transformers' image-classification pipeline
            gives them.

        Raises:
            ValueError: If there is no image that can be read, an unknown parameter, or a `top_k` that is no number
                from 1 on.
        """
        self._report()
        if not isinstance(data, dict) or "inputs" not in data:
            found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"expected 'inputs' with an image, got {found!r:.200}")
        top_k = _top_k(data.get("parameters"))
        image = _image(data["inputs"], self._channels)
        inputs = self.processor(image, return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.no_grad():
            scores = _scores(self.model(**inputs).logits[0].float(), self.model.config)
        best, classes = scores.topk(min(top_k, len(scores)))
        names = [self.model.config.id2label[i] for i in classes.tolist()]
        return [{"label": name, "score": score} for name, score in zip(names, best.tolist(), strict=True)]

    def _report(self) -> None:
        # A process that was forked has no stream: it stays at its stage.
        stream = self.model.stream
        failure = None if stream is None else stream.exception
        if failure is not None and failure is not self._failure:
            self._failure = failure
            logger.error("the model stays at stage %s: %s", self.model.stage, failure)


def _top_k(parameters: Any) -> int:
    """How many labels the parameters of a request ask for."""
    if not isinstance(parameters, dict | None):
        raise ValueError(f"parameters must be an object, got {type(parameters).__name__}")
    if unknown := sorted(str(name) for name in parameters or () if name != "top_k"):
        raise ValueError(f"parameters has an unknown {unknown[0]!r:.100}, expected 'top_k'")
    found = (parameters or {}).get("top_k", 5)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ValueError(f"top_k must be a whole number from 1 on, got {found!r:.100}")
    return found


def _scores(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Scores (K,) of logits (K,), by the function that transformers' pipeline chooses."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()
    return logits.softmax(-1)


def _image(inputs: Any, num_channels: int = 3) -> Image.Image:
    """The image that a request means: an endpoint decodes a body of an image type; JSON brings base64."""
    if isinstance(inputs, str):
        _, _, text = inputs.rpartition("base64,")  # "data:image/png;base64," may stand before it
        try:
            inputs = base64.b64decode("".join(text.split()), validate=True)
        except ValueError as error:
            raise ValueError(
                f"'inputs' is a string that is not base64 ({error}); addresses are not followed"
            ) from error
    if not isinstance(inputs, bytes | Image.Image):
        raise ValueError(f"'inputs' must be an image, its bytes or those in base64, got {type(inputs).__name__}")
    try:
        image = Image.open(io.BytesIO(inputs)) if isinstance(inputs, bytes) else inputs
        # Upright, and by way of RGB, as in transformers' pipelines.
        turned = ImageOps.exif_transpose(image)
        return (turned.convert("RGB") if num_channels == 1 else turned).convert(_MODES[num_channels])
    # Decoders raise what they like: OSError, SyntaxError, struct.error and more.
    except Exception as error:
        raise ValueError(f"'inputs' is no image that can be read: {error}") from error
