"""What each stage answers, and what a fresh process does where nothing heavy can be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwl_hf import PWLConfig, PWLForImageClassification, VGGConfig
from pwl_hf.runtime import RuntimeModel
from tests.tiny import scattered, tiny_model, tiny_pair

NUM_STAGES = 3


def graph_model(family: str) -> PWLForImageClassification:
    """The tiny model, or a smaller VGG with networks of one size, which has one graph for each kind of layer."""
    if family != "pwl_vgg":
        return tiny_model(family, NUM_STAGES)
    labels = {name: getattr(tiny_pair(family)[0], name) for name in ("id2label", "label2id")}
    network = VGGConfig(hidden_sizes=[6, 8, 8], depths=[1] * NUM_STAGES, **labels)
    return scattered(PWLConfig(teacher_config=network, student_config=network, num_blocks=NUM_STAGES))


@dataclass(frozen=True)
class Expected:
    """Pixels, and the logits of each stage for them: torch's, and the runtime's own, all of which differ."""

    pixels: NDArray[np.float32]
    by_torch: list[NDArray[np.float32]]
    logits: list[NDArray[np.float32]]

    def __post_init__(self) -> None:
        for i, one in enumerate(self.logits):
            assert not any(np.array_equal(one, other) for other in self.logits[:i])

    def stage_of(self, logits: NDArray[np.float32]) -> int | None:
        """The stage whose answer this is, bit for bit; None if it is nobody's."""
        return next((stage for stage, own in enumerate(self.logits) if np.array_equal(logits, own)), None)

    def stage_now(self, model: RuntimeModel) -> int | None:
        """The stage that a model answers from now."""
        return self.stage_of(model.logits(pixel_values=self.pixels))


# What must never be imported, whatever a model does.
HEAVY = ("torch", "transformers", "datasets", "accelerate", "safetensors", "onnx", "scipy", "sympy", "jinja2", "rich")
ABSENT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
tops = lambda: {{name.split(".")[0] for name in sys.modules}}
out = {{}}
"""


def fresh(code: str, env: dict[str, str], *arguments: object) -> dict:
    """What a new process collects in `out`, where nothing heavy can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"{ABSENT}\n{code}\nimport json; print(json.dumps(out))", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**env, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
