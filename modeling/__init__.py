"""What a PWL model is and how it loads.

It imports only itself, torch, transformers, huggingface_hub and safetensors, so that what loading needs of it can be
joined into one file that travels with the weights (see `remote_code`). Import it as `pwl_hf.modeling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "pwl_hf.modeling":
    raise ImportError(
        f"this package was imported as {__name__!r}, which would make a second copy of its classes; "
        "import it as `pwl_hf.modeling`"
    )

from .lazy import lazy

if TYPE_CHECKING:
    from .configuration_pwl import PWLConfig
    from .configuration_vgg import VGGConfig
    from .converters import Converter
    from .errors import (
        FetchError,
        OverwriteError,
        PublishError,
        PWLError,
        RepositoryError,
        SaveError,
        StageError,
        StateDictError,
        TrainingError,
    )
    from .manifest import Manifest, Metric
    from .modeling_pwl import PWLForImageClassification
    from .modeling_vgg import VGGForImageClassification, VGGModel
    from .retrying import RetryPolicy
    from .sources import Sources
    from .staged_model import PWLPreTrainedModel

_EXPORTS = {
    "Boundary": "family",
    "Converter": "converters",
    "Family": "family",
    "Features": "family",
    "FetchError": "errors",
    "Manifest": "manifest",
    "Metric": "manifest",
    "OverwriteError": "errors",
    "PWLConfig": "configuration_pwl",
    "PWLError": "errors",
    "PWLForImageClassification": "modeling_pwl",
    "PWLPreTrainedModel": "staged_model",
    "PublishError": "errors",
    "RepositoryError": "errors",
    "RetryPolicy": "retrying",
    "SaveError": "errors",
    "Sources": "sources",
    "StageError": "errors",
    "StateDictError": "errors",
    "TrainingError": "errors",
    "VGGConfig": "configuration_vgg",
    "VGGForImageClassification": "modeling_vgg",
    "VGGModel": "modeling_vgg",
    "register_family": "families",
}

__all__ = [
    "Boundary",
    "Converter",
    "Family",
    "Features",
    "FetchError",
    "Manifest",
    "Metric",
    "OverwriteError",
    "PWLConfig",
    "PWLError",
    "PWLForImageClassification",
    "PWLPreTrainedModel",
    "PublishError",
    "RepositoryError",
    "RetryPolicy",
    "SaveError",
    "Sources",
    "StageError",
    "StateDictError",
    "TrainingError",
    "VGGConfig",
    "VGGForImageClassification",
    "VGGModel",
    "register_family",
]


__getattr__, __dir__ = lazy(__name__, _EXPORTS)
