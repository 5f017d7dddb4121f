"""A model that answers and grows on onnxruntime alone: neither torch nor transformers.

    from pwl_hf import runtime

    model = runtime.load("org/pwl-vit", stream=True)  # a repository with graphs: see `pwl-hf export`
    model.predict("cat.jpg")                          # [{"label": "tabby", "score": 0.93}, ...]

Install it with `pip install "pwl-hf[runtime]"`. Importing it imports nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pwl_hf.modeling.lazy import lazy

if TYPE_CHECKING:
    from pwl_hf.runtime.loading import load
    from pwl_hf.runtime.model import RuntimeModel

__all__ = ["RuntimeModel", "load"]

_EXPORTS = {"RuntimeModel": "model", "load": "loading"}

__getattr__, __dir__ = lazy(__name__, _EXPORTS)
