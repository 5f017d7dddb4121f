"""Names that a package exports and imports on first use, and what to install where that fails (pure Python).

Reading a manifest must not cost an import of torch, nor need it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

# The extra of this package that brings another, by the name that is imported.
_EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "PIL": "torch",
    "numpy": "torch",
    "onnxruntime": "runtime",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxscript": "onnx",
    "datasets": "evaluate",
    "evaluate": "evaluate",
    "matplotlib": "evaluate",
    "sklearn": "evaluate",
    "soundfile": "audio",
    "soxr": "audio",
    "accelerate": "train",
    "captum": "train",
    "fastapi": "serve",
    "uvicorn": "serve",
}


def lazy(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: Its name.
        exports: The names, each with the module of the package that has it.

    Example:

        >>> __getattr__, __dir__ = lazy(__name__, {"DataSource": "source"})  # doctest: +SKIP
    """

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(f"{package}.{exports[name]}"), name)
        except ModuleNotFoundError as error:
            if (advice := missing_extra(error)) is None:
                raise
            raise ImportError(f"{package}.{name} {advice}", name=error.name) from error
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports})

    return __getattr__, __dir__


def missing_extra(error: ModuleNotFoundError, extra: str | None = None) -> str | None:
    """What is missing and which extra of this package brings it, in words; None if none does.

    Args:
        error: What an import raised.
        extra: The extra to name, where one brings all that is needed; by default the smallest that brings the package.
    """
    missing = (error.name or "").partition(".")[0]
    if missing not in _EXTRAS:
        return None
    return f'needs {missing}, which is not installed: pip install "pwl-hf[{extra or _EXTRAS[missing]}]"'
