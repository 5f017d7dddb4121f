"""Forward passes of the runtime at its last stage, against a plain onnxruntime session of the whole teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.speed.figures import TEACHER_ROW, Figure, Measured, Place
from benchmarks.speed.measures.forward import in_turns
from benchmarks.speed.without_torch import TeacherSession
from pwl_hf import runtime
from pwl_hf.modeling.families.registry import family_of

SESSION = "onnxruntime's session of the teacher"

# By the name of a figure, the threads of a run.
_THREADS = {"the last stage": 1, "the last stage, two threads": 2}


def forward(place: Place) -> Measured:
    """One image. Each figure is the median over rounds of the ratio of two neighbouring blocks of passes."""
    folder, pixel_values = place.exported(), place.pair.pixel_values()
    images = pixel_values.numpy()
    figures: list[Figure] = []
    seconds: dict[str, list[float]] = {}

    def compare(name: str, ours: Callable[[], Any], base: str, theirs: Callable[[], Any]) -> None:
        one, other = in_turns(ours, theirs, place.repeats)
        seconds[name], seconds[f"{name}: {base}"] = one, other
        figures.append(Figure.ratio(name, one, other, base))
        beyond = [1000 * (a - b) for a, b in zip(one, other, strict=True)]
        figures.append(Figure.of(f"{name}: beyond that", beyond, "ms"))

    for name, threads in _THREADS.items():
        model = runtime.load(folder, stage="teacher", threads=threads)
        session = TeacherSession.from_pretrained(str(folder), threads=threads)
        ours, theirs = partial(model.logits, pixel_values=images), partial(session, images)
        if not np.array_equal(ours(), theirs().logits):
            raise AssertionError(f"{name}: the logits are not those of {SESSION}")
        compare(name, ours, SESSION, theirs)
    plain = family_of(place.pair.teacher).model_class().from_pretrained(folder / "teacher")
    model = runtime.load(folder, stage="teacher", threads=1)
    with torch.inference_mode():
        compare(
            f"the last stage, against {TEACHER_ROW}",
            partial(model.logits, pixel_values=images),
            TEACHER_ROW,
            partial(plain, pixel_values),
        )
    return Measured(figures, {"seconds": seconds})
