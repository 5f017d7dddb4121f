"""The handler that Hugging Face Inference Endpoints load from the root of a repository.

It answers as the student from the first request on. The whole repository lies on the endpoint's disk, so the
stages come from there, in the background, within seconds. Written by pwl-hf, which need not be installed:
the model's code comes with the repository as well.
"""

from __future__ import annotations

import base64
import copy
import io
import logging
import os
import threading
from collections.abc import Callable, Collection
from typing import Any

import torch
import transformers

logger = logging.getLogger(__name__)

# What an image becomes for networks of so many input channels.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FUNCTIONS = ("none", "sigmoid", "softmax")
_STRATEGIES = ("none", "simple", "first", "average", "max")
# Of one request: texts, their characters, and the length of a sound.
_MOST_TEXTS, _MOST_CHARACTERS, _MOST_SECONDS = 64, 1_000_000, 300.0


class EndpointHandler:
    """Classifies images, texts, the tokens of texts, or sounds, as the model's task is.

    Args:
        path: The folder of the repository; the one this file lies in by default.
    """

    def __init__(self, path: str = "") -> None:
        folder = str(path) or os.path.dirname(os.path.abspath(__file__))
        # Code of the repository that this file itself is run from: no more is trusted than before.
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
        auto_class = config.task or "AutoModelForImageClassification"
        if auto_class not in _SAMPLES:
            raise ValueError(f"the model is of task {config.task!r}, the handler knows {', '.join(_SAMPLES)}")
        self.model = getattr(transformers, auto_class).from_pretrained(
            folder, trust_remote_code=True, stream=True, device_map="auto"
        )
        self._samples = _SAMPLES[auto_class](folder, self.model)
        self._failure: BaseException | None = None

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Answer one request, as transformers' pipeline of the model's task does.

        Args:
            data: `inputs`, and `parameters` if there are any. Images: one, its encoded bytes, or those in base64;
                `top_k` (5). Texts: a string, `{"text", "text_pair"}`, or a list of these; `top_k`, `function_to_apply`,
                `truncation`. Tokens: a string or a list; `aggregation_strategy`, `ignore_labels`, `stride`,
                `truncation`. Sounds: the bytes of a file, those in base64, or samples as a list of numbers with
                `sampling_rate`; `top_k` (5), `function_to_apply`.

        Returns:
            What the pipeline gives: `label` and `score` of the best classes, the best first; of tokens the entities.

        Raises:
            ValueError: If there is no sample that can be read, a text or a sound is too long, or a parameter is unknown
                or cannot be.
        """
        self._report()
        if not isinstance(data, dict) or "inputs" not in data:
            found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"expected 'inputs', got {found!r:.200}")
        parameters = data.get("parameters")
        if not isinstance(parameters, dict | None):
            raise ValueError(f"parameters must be an object, got {type(parameters).__name__}")
        _check_parameters(parameters or {}, self._samples.parameters)
        answer: list[Any] = self._samples.answer(data["inputs"], parameters or {})
        return answer

    def _report(self) -> None:
        # A process that was forked has no stream: it stays at its stage.
        stream = self.model.stream
        failure = None if stream is None else stream.exception
        if failure is not None and failure is not self._failure:
            self._failure = failure
            logger.error("the model stays at stage %s: %s", self.model.stage, failure)


def _check_parameters(parameters: dict[Any, Any], known: Collection[str]) -> None:
    """Refuse parameters that a task does not have, or that cannot be."""
    if unknown := sorted(str(name) for name in parameters if name not in known):
        raise ValueError(f"parameters has an unknown {unknown[0]!r:.100}, expected {', '.join(known)}")
    for name, value in parameters.items():
        if name in ("top_k", "stride", "sampling_rate"):
            least = 0 if name == "stride" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} on, got {value!r:.100}")
        elif name == "truncation":
            if not isinstance(value, bool):
                raise ValueError(f"truncation must be true or false, got {value!r:.100}")
        elif name == "ignore_labels":
            if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
                raise ValueError(f"ignore_labels must be a list of labels, got {value!r:.100}")
        elif value not in (choices := _FUNCTIONS if name == "function_to_apply" else _STRATEGIES):
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.100}")


class _Images:
    """Image classification."""

    parameters = ("top_k",)

    def __init__(self, folder: str, model: Any) -> None:
        self.model = model
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder)
        self.channels = model.config.num_channels
        if self.channels not in _MODES:
            raise ValueError(f"the model takes images of {self.channels} channels, which no image has")

    def answer(self, inputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """Labels and scores of one image."""
        image = _image(inputs, self.channels)
        made = self.processor(image, return_tensors="pt").to(self.model.device, self.model.dtype)
        with torch.no_grad():
            scores = _scores(self.model(**made).logits[0].float(), self.model.config)
        best, classes = scores.topk(min(parameters.get("top_k", 5), len(scores)))
        names = [self.model.config.id2label[i] for i in classes.tolist()]
        return [{"label": name, "score": score} for name, score in zip(names, best.tolist(), strict=True)]


class _Texts:
    """Text classification."""

    parameters: tuple[str, ...] = ("top_k", "function_to_apply", "truncation")
    pipeline = "text-classification"
    takes_pairs = True

    def __init__(self, folder: str, model: Any) -> None:
        self.model = model
        # It looks into the config, whose code is the model's.
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        if (most := model.config.max_tokens_of(self.tokenizer)) is not None:
            self.tokenizer.model_max_length = most
        self._of_thread = threading.local()

    def answer(self, inputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """What the pipeline makes of one text, or of several."""
        self.check(inputs, parameters)
        return self._pipeline()(inputs, **parameters)

    def check(self, inputs: Any, parameters: dict[str, Any]) -> None:
        """Refuse what is no text, and what the networks have no positions for."""
        texts = inputs if isinstance(inputs, list) else [inputs]
        if not 0 < len(texts) <= _MOST_TEXTS:
            raise ValueError(f"'inputs' has {len(texts)} texts, it can have 1 to {_MOST_TEXTS}")
        parts = [self._parts(text, f"text {number}") for number, text in enumerate(texts)]
        if (characters := sum(len(part) for text in parts for part in text)) > _MOST_CHARACTERS:
            raise ValueError(f"'inputs' has {characters} characters, it can have {_MOST_CHARACTERS}")
        if parameters.get("truncation") or "stride" in parameters:
            return
        tokenizer, most = self._pipeline().tokenizer, self.tokenizer.model_max_length
        for number, text in enumerate(parts):
            length = len(tokenizer(*text, verbose=False)["input_ids"])
            if not 0 < length <= most:
                raise ValueError(
                    f"text {number} has {length} tokens, and the model takes 1 to {most}: change it, or give the "
                    "parameter truncation to have it cut"
                )

    def _parts(self, text: Any, name: str) -> list[str]:
        is_pair = self.takes_pairs and isinstance(text, dict) and "text" in text
        parts = list(text.values()) if is_pair else [text]
        if not all(isinstance(part, str) for part in parts) or (is_pair and not text.keys() <= {"text", "text_pair"}):
            kinds = "a string, or an object with 'text' and 'text_pair'" if self.takes_pairs else "a string"
            raise ValueError(f"{name} must be {kinds}, got {type(text).__name__}")
        for part in parts:
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(f"{name} holds half of a character at {error.start}") from error
        return [text["text"], *([text["text_pair"]] if "text_pair" in text else [])] if is_pair else parts

    def _pipeline(self) -> Any:
        # A tokenizer is set for each call: two threads must not share one.
        if not hasattr(self._of_thread, "pipeline"):
            made: Callable[..., Any] = transformers.pipeline
            self._of_thread.pipeline = made(
                self.pipeline, model=self.model, tokenizer=copy.deepcopy(self.tokenizer), device=self.model.device
            )
        return self._of_thread.pipeline


class _Tokens(_Texts):
    """Token classification."""

    parameters = ("aggregation_strategy", "ignore_labels", "stride", "truncation")
    pipeline = "token-classification"
    takes_pairs = False

    def answer(self, inputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """The entities of one text, or of several."""
        self.check(inputs, parameters)
        stride = parameters.get("stride")
        if stride is not None:
            room = self.tokenizer.model_max_length - self.tokenizer.num_special_tokens_to_add()
            if stride >= room or parameters.get("aggregation_strategy", "none") == "none":
                raise ValueError(
                    f"stride is {stride}, it must be below {room}, with an aggregation_strategy other than none"
                )
        # It cuts at the longest length by itself.
        found = self._pipeline()(inputs, **{name: value for name, value in parameters.items() if name != "truncation"})
        return [_plain(entity) for entity in found]


def _plain(entity: Any) -> Any:
    """Scores as numbers of Python's, which JSON has."""
    return [_plain(one) for one in entity] if isinstance(entity, list) else {**entity, "score": float(entity["score"])}


class _Sounds:
    """Audio classification."""

    parameters = ("top_k", "function_to_apply", "sampling_rate")

    def __init__(self, folder: str, model: Any) -> None:
        import soundfile  # now, rather than at the first request

        del soundfile
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
        self.rate = extractor.sampling_rate
        self.pipeline = transformers.pipeline(
            "audio-classification", model=model, feature_extractor=extractor, device=model.device
        )

    def answer(self, inputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """Labels and scores of one sound."""
        given = {name: value for name, value in parameters.items() if name != "sampling_rate"}
        sound = _sound(inputs, self.rate, parameters.get("sampling_rate"))
        try:
            found: list[Any] = self.pipeline(sound, **{"top_k": 5, **given})
        except (RuntimeError, ValueError) as error:
            # Of what cannot be framed, networks say what they like.
            raise ValueError(f"the model cannot take a sound of {len(sound)} samples: {error}") from error
        return found


def _sound(inputs: Any, wanted: int, rate: int | None) -> Any:
    """The waveform that a request means, at the rate that is wanted."""
    import numpy as np

    if isinstance(inputs, dict):
        if not inputs.keys() <= {"array", "raw", "sampling_rate"} or "sampling_rate" not in inputs:
            raise ValueError(f"'inputs' must have 'array' or 'raw', and 'sampling_rate', got {sorted(inputs)!r:.200}")
        rate = inputs["sampling_rate"]
        _check_parameters({"sampling_rate": rate}, ("sampling_rate",))
        inputs = inputs.get("array", inputs.get("raw"))
    if isinstance(inputs, str | bytes):
        if rate is not None:
            raise ValueError("sampling_rate is for samples: a file tells its own")
        samples, rate = _decoded(_from_base64(inputs) if isinstance(inputs, str) else inputs)
    else:
        try:
            samples = np.asarray(inputs, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"'inputs' must be the bytes of a sound, those in base64, or its samples: {error}"
            ) from error
        if rate is None:
            raise ValueError("'inputs' are samples: give their sampling_rate")
    if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
        raise ValueError(f"the sound must be of one channel and finite, got the shape {samples.shape}")
    if len(samples) > _MOST_SECONDS * rate:
        raise ValueError(f"the sound is longer than {_MOST_SECONDS:.0f} s")
    if rate != wanted:
        import soxr

        samples = soxr.resample(samples, rate, wanted)
    return samples


def _decoded(content: bytes) -> tuple[Any, int]:
    """The samples of a file, of its channels' mean, and their rate."""
    import soundfile

    try:
        # What a file will be is told by its header: a short one may be of hours.
        if soundfile.info(io.BytesIO(content)).duration > _MOST_SECONDS:
            raise ValueError(f"it is longer than {_MOST_SECONDS:.0f} s")
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    # Decoders raise what they like.
    except Exception as error:
        raise ValueError(f"'inputs' is no sound that can be read: {error}") from error
    return samples.mean(axis=1), rate


def _scores(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Scores (K,) of logits (K,), by the function that transformers' pipeline chooses."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()
    return logits.softmax(-1)


def _from_base64(text: str) -> bytes:
    """The bytes that a string of JSON means; "data:image/png;base64," may stand before it."""
    _, _, text = text.rpartition("base64,")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError(f"'inputs' is a string that is not base64 ({error}); addresses are not followed") from error


def _image(inputs: Any, num_channels: int = 3) -> Any:
    """The image that a request means: an endpoint decodes a body of an image type; JSON brings base64."""
    from PIL import Image, ImageOps

    if isinstance(inputs, str):
        inputs = _from_base64(inputs)
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


# By the Auto class of the model's task.
_SAMPLES: dict[str, Callable[[str, Any], Any]] = {
    "AutoModelForImageClassification": _Images,
    "AutoModelForSequenceClassification": _Texts,
    "AutoModelForTokenClassification": _Tokens,
    "AutoModelForAudioClassification": _Sounds,
}
