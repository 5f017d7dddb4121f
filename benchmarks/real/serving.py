"""What is loaded in processes whose answers are timed; it imports what a user's own program would, and no more."""

from __future__ import annotations

from transformers import AutoConfig

import benchmarks.real.family  # noqa: F401  registers it
from benchmarks.real.network import CifarResNetConfig
from benchmarks.speed.measures.alternatives_ways import Int8First
from pwl_hf import PWLForImageClassification

AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig)

__all__ = ["Int8First", "PWLForImageClassification"]
