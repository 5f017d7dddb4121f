"""Progressive Weight Loading for Hugging Face.

A model that answers after its first small shard and grows into its teacher while it serves:

    from pwl_hf import PWLForImageClassification

    model = PWLForImageClassification.from_pretrained("org/pwl-vit")  # the student
    model.load_next_stage()                                           # one block of the teacher
    model.set_stage("teacher")                                        # the teacher, bit for bit

Importing this package imports neither torch nor transformers. transformers' Auto classes and pipelines
know its models from then on, whichever of the two is imported first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

# In a checkout the sub-packages lie beside this folder; installed, they lie in it.
if not Path(__file__).with_name("modeling").is_dir():
    __path__.append(str(Path(__file__).resolve().parent.parent))

from pwl_hf.modeling.lazy import lazy
from pwl_hf.registration import register_when_loaded

if TYPE_CHECKING:
    from pwl_hf.modeling import (
        Boundary,
        Converter,
        DrivenFamily,
        Family,
        Features,
        FetchError,
        Manifest,
        Metric,
        OverwriteError,
        PublishError,
        PWLConfig,
        PWLError,
        PWLForAudioClassification,
        PWLForImageClassification,
        PWLForSequenceClassification,
        PWLForTokenClassification,
        PWLPreTrainedModel,
        RepositoryError,
        RetryPolicy,
        SaveError,
        Sources,
        StageError,
        StateDictError,
        TrainingError,
        VGGConfig,
        VGGForImageClassification,
        VGGModel,
        register_family,
    )
    from pwl_hf.prefetching import prefetch

__version__ = "0.1.0"

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
    "__version__",
    "prefetch",
    "register_family",
]

_EXPORTS = {name: "modeling" for name in __all__ if name != "__version__"} | {"prefetch": "prefetching"}

__getattr__, __dir__ = lazy(__name__, _EXPORTS)

register_when_loaded()
