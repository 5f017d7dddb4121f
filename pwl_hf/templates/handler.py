"""The handler that Hugging Face Inference Endpoints load from the root of a repository.

It answers as the student from the first request on. The whole repository lies on the endpoint's disk, so the
stages come from there, in the background, within seconds. Written by pwl-hf, which need not be installed:
the model's code comes with the repository as well.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import os
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

logger = logging.getLogger(__name__)


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
        self._failure: BaseException | None = None

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Classify one image.

        Args:
            data: `inputs`, an image, its encoded bytes, or those in base64; and `parameters` if there are any:
                `top_k`, the number of labels (5).

        Returns:
            `label` and `score` of the best classes, the best first.

        Raises:
            ValueError: If there is no image that can be read, or an unknown parameter.
        """
        self._report()
        parameters = {"top_k": 5, **(data.get("parameters") or {})}
        if unknown := parameters.keys() - {"top_k"}:
            raise ValueError(f"parameters has an unknown {min(unknown)!r}, expected 'top_k'")
        if "inputs" not in data:
            raise ValueError(f"expected 'inputs' with an image, got {sorted(data)}")
        inputs = self.processor(_image(data["inputs"]), return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.no_grad():
            scores = self.model(**inputs).logits[0].float().softmax(-1)
        best, classes = scores.topk(min(int(parameters["top_k"]), len(scores)))
        names = [self.model.config.id2label[i] for i in classes.tolist()]
        return [{"label": name, "score": score} for name, score in zip(names, best.tolist(), strict=True)]

    def _report(self) -> None:
        failure = self.model.stream.exception
        if failure is not None and failure is not self._failure:
            self._failure = failure
            logger.error("the model stays at stage %s: %s", self.model.stage, failure)


def _image(inputs: Any) -> Image.Image:
    """The image that a request means: an endpoint decodes a body of an image type; JSON brings base64."""
    if isinstance(inputs, Image.Image):
        return inputs.convert("RGB")
    if isinstance(inputs, str):
        _, _, text = inputs.rpartition("base64,")  # "data:image/png;base64," may stand before it
        try:
            inputs = base64.b64decode("".join(text.split()), validate=True)
        except binascii.Error as error:
            raise ValueError(
                f"'inputs' is a string that is not base64 ({error}); addresses are not followed"
            ) from error
    if not isinstance(inputs, bytes):
        raise ValueError(f"'inputs' must be an image, its bytes or those in base64, got {type(inputs).__name__}")
    try:
        return Image.open(io.BytesIO(inputs)).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"'inputs' is no image that can be read: {error}") from error
