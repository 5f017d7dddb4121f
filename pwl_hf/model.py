"""The model that users import: the one that travels with the weights, plus publishing."""

from __future__ import annotations

import os
from typing import Any

import torch

from pwl_hf import modeling
from pwl_hf.publishing import push_model


class PWLForImageClassification(modeling.PWLForImageClassification):
    __doc__ = modeling.PWLForImageClassification.__doc__

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        return push_model(self, repo_id, **kwargs)
