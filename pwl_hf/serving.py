"""What servers are asked, as the Hub's own API has it: requests become samples and parameters, within bounds.

Imports neither torch nor transformers. The examples of servers read their requests by it.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from pwl_hf.modeling.task_names import TASKS
from pwl_hf.waveforms import package

# Of one request: texts, and their characters.
MOST_TEXTS, MOST_CHARACTERS = 64, 1_000_000
_PARAMETERS = {
    "image-classification": ("top_k",),
    "text-classification": ("top_k", "function_to_apply", "truncation"),
    "token-classification": ("aggregation_strategy", "ignore_labels", "stride", "truncation"),
    "audio-classification": ("top_k", "function_to_apply", "sampling_rate"),
}
_SAMPLES = {task.pipeline: task.samples for task in TASKS.values()}


class RequestReader:
    """Reads the requests of a model's task.

    Args:
        task: What the model does, as the Hub calls it.
        most_seconds: The longest sound, in seconds.

    Raises:
        ImportError: If what decodes the task's samples is not installed.

    Example:

        >>> RequestReader("text-classification").read(b'{"inputs": "a good film"}', is_json=True)
        ('a good film', {'top_k': 5})
    """

    def __init__(self, task: str, most_seconds: float = 60.0) -> None:
        self.task, self.most_seconds = task, most_seconds
        if _SAMPLES[task] == "sounds":
            package("soundfile")
            package("soxr")

    def read(self, body: bytes, *, is_json: bool, top_k: int = 5) -> tuple[Any, dict[str, Any]]:
        """The samples of a request, and the parameters that they are answered with.

        Args:
            body: An image or a sound as it is, or JSON: `inputs`, and `parameters` if there are any.
            is_json: Whether its type says that it is JSON; of texts it is in any case.
            top_k: How many labels, unless the parameters tell; tokens have no such number.

        Returns:
            An image, decoded; a text, a pair or a list of these; or the bytes of a sound, or a mapping with its samples
            and their rate.

        Raises:
            ValueError: If it is no such request, or more than is answered at once.
        """
        kind, known = _SAMPLES[self.task], _PARAMETERS[self.task]
        samples, parameters = _parsed(body) if is_json or kind == "texts" else (body, {})
        if unknown := sorted(parameters.keys() - known):
            raise ValueError(f"parameters has an unknown {unknown[0]!r:.100}, expected {', '.join(known)}")
        parameters = {"top_k": top_k} | parameters if "top_k" in known else parameters
        if kind == "images":
            return _image(_from_base64(samples) if isinstance(samples, str) else samples), parameters
        if kind == "sounds":
            return self._sound(samples, parameters.pop("sampling_rate", None)), parameters
        _check_texts(samples)
        return samples, parameters

    def _sound(self, content: Any, sampling_rate: Any) -> Any:
        """The bytes of a file, or samples with their rate."""
        content = _from_base64(content) if isinstance(content, str) else content
        if isinstance(content, bytes):
            if sampling_rate is not None:
                raise ValueError("sampling_rate is for samples: a file tells its own")
            try:
                # What a file will be is told by its header: a short one may be of hours.
                seconds = package("soundfile").info(io.BytesIO(content)).duration
            except Exception as error:
                raise ValueError(f"the body is no sound that can be read: {error}") from error
        else:
            content = content if isinstance(content, dict) else {"raw": content, "sampling_rate": sampling_rate}
            samples, rate = content.get("raw", content.get("array")), content.get("sampling_rate")
            if not isinstance(samples, list) or type(rate) is not int or rate < 1:
                raise ValueError("'inputs' must be a sound in base64, or a list of samples with their sampling_rate")
            seconds = len(samples) / rate
        if seconds > self.most_seconds:
            raise ValueError(f"the sound is of {seconds:.1f} s, it can be of {self.most_seconds:g} s")
        return content


def _parsed(body: bytes) -> tuple[Any, dict[str, Any]]:
    """`inputs` and `parameters` of a body of JSON."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict) or "inputs" not in found or not found.keys() <= {"inputs", "parameters", "options"}:
        raise ValueError("the body must be an object with 'inputs', and 'parameters' if there are any")
    parameters = found.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters must be an object, got {type(parameters).__name__}")
    return found["inputs"], parameters


def _from_base64(text: str) -> bytes:
    """The bytes that a string of JSON means; "data:image/png;base64," may stand before it."""
    try:
        return base64.b64decode("".join(text.rpartition("base64,")[2].split()), validate=True)
    except ValueError as error:
        raise ValueError(f"'inputs' is a string that is not base64 ({error}); addresses are not followed") from error


def _image(content: Any) -> Any:
    """A decoded image."""
    from PIL import Image  # of images alone

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error and more
        raise ValueError(f"the body is no image that can be read: {error}") from error
    return image


def _check_texts(samples: Any) -> None:
    """Refuse more texts, or longer ones, than are answered at once; the tokenizer looks at the rest."""
    several = samples if isinstance(samples, list) else [samples]
    if not 0 < len(several) <= MOST_TEXTS:
        raise ValueError(f"'inputs' has {len(several)} texts, it can have 1 to {MOST_TEXTS}")
    parts = [part for text in several for part in (text.values() if isinstance(text, dict) else [text])]
    if (characters := sum(len(part) for part in parts if isinstance(part, str))) > MOST_CHARACTERS:
        raise ValueError(f"'inputs' has {characters} characters, it can have {MOST_CHARACTERS}")
