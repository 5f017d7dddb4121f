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
    from .families.configuration_vgg import VGGConfig
    from .families.modeling_vgg import VGGForImageClassification, VGGModel
    from .modeling_pwl import PWLPreTrainedModel
    from .repository.manifest import Manifest, Metric
    from .repository.retrying import RetryPolicy
    from .routes.converters import Converter
    from .sources import Sources
    from .tasks.audio_classification import PWLForAudioClassification
    from .tasks.image_classification import PWLForImageClassification
    from .tasks.sequence_classification import PWLForSequenceClassification
    from .tasks.token_classification import PWLForTokenClassification

_EXPORTS = {
    "Boundary": "families.base",
    "Converter": "routes.converters",
    "DrivenFamily": "families.driven",
    "Family": "families.base",
    "Features": "families.base",
    "FetchError": "errors",
    "Manifest": "repository.manifest",
    "Metric": "repository.manifest",
    "OverwriteError": "errors",
    "PWLConfig": "configuration_pwl",
    "PWLError": "errors",
    "PWLForAudioClassification": "tasks.audio_classification",
    "PWLForImageClassification": "tasks.image_classification",
    "PWLForSequenceClassification": "tasks.sequence_classification",
    "PWLForTokenClassification": "tasks.token_classification",
    "PWLPreTrainedModel": "modeling_pwl",
    "PublishError": "errors",
    "RepositoryError": "errors",
    "RetryPolicy": "repository.retrying",
    "SaveError": "errors",
    "Sources": "sources",
    "StageError": "errors",
    "StateDictError": "errors",
    "TrainingError": "errors",
    "VGGConfig": "families.configuration_vgg",
    "VGGForImageClassification": "families.modeling_vgg",
    "VGGModel": "families.modeling_vgg",
    "register_family": "families.registry",
}

__all__ = [
    "Boundary",
    "Converter",
    "DrivenFamily",
    "Family",
    "Features",
    "FetchError",
    "Manifest",
    "Metric",
    "OverwriteError",
    "PWLConfig",
    "PWLError",
    "PWLForAudioClassification",
    "PWLForImageClassification",
    "PWLForSequenceClassification",
    "PWLForTokenClassification",
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
