"""Forward passes at each stage, against the same modules called by hand and against transformers' own."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.speed.figures import Figure, Measured, Place
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of

BY_HAND = "the same modules called directly"

# Passes in a block: about a fifth of a second, so that one disturbed pass does not matter.
_SECONDS, _MOST_CALLS = 0.2, 50

Pass = Callable[[], torch.Tensor]


def forward(place: Place) -> Measured:
    """One image, one thread. A stage's figure is the median over rounds of the ratio of two neighbouring blocks."""
    folder, pixel_values = place.repository(), place.pair.pixel_values()
    figures: list[Figure] = []
    of_stages: list[Figure] = []
    seconds: dict[str, list[float]] = {}

    def compare(name: str, ours: Pass, base: str, theirs: Pass) -> None:
        if not torch.equal(ours(), theirs()):
            raise AssertionError(f"{name}: the logits are not those of {base}")
        one, other = in_turns(ours, theirs, place.repeats)
        seconds[name], seconds[f"{name}: {base}"] = one, other
        figures.append(Figure.ratio(name, one, other, base))
        if base == BY_HAND:
            of_stages.append(figures[-1])
            beyond = [1000 * (a - b) for a, b in zip(one, other, strict=True)]
            figures.append(Figure.of(f"{name}: beyond that", beyond, "ms"))

    network = family_of(place.pair.teacher).model_class()
    ends = {0: "student", place.pair.num_blocks: "teacher"}
    with torch.inference_mode():
        for stage in range(place.pair.num_blocks + 1):
            model = PWLForImageClassification.from_pretrained(folder, stage=stage)

            ours = partial(_logits, model, pixel_values)
            by_hand = _DIRECT[place.pair.teacher.model_type](model)
            compare(f"stage {stage}", ours, BY_HAND, partial(by_hand, pixel_values))
            if stage in ends:
                plain = network.from_pretrained(folder / ends[stage])
                name = f"stage {stage}, the {ends[stage]}"
                compare(name, ours, f"transformers' {ends[stage]}", partial(_logits, plain, pixel_values))
    worst = max(of_stages, key=lambda figure: figure.value.median)
    figures.insert(0, replace(worst, name="the stage that loses most"))
    return Measured(figures, {"seconds": seconds})


def in_turns(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds a pass of two things: each round has a block of passes of each, in alternating order.

    Args:
        one: The first.
        other: The second.
        rounds: Rounds that count; one more comes before.
    """
    calls = _calls(one)
    times: tuple[list[float], list[float]] = ([], [])
    was_enabled = gc.isenabled()
    try:
        for turn in range(rounds + 1):
            pair = [(one, times[0]), (other, times[1])]
            for thing, found in pair if turn % 2 else reversed(pair):
                gc.collect()
                gc.disable()
                block = [_seconds(thing) for _ in range(calls)]
                if was_enabled:
                    gc.enable()
                if turn:
                    found.append(statistics.median(block))
    finally:
        if was_enabled:
            gc.enable()
    return times


def _logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(pixel_values).logits
    return logits


def _calls(thing: Callable[[], Any]) -> int:
    thing()
    return max(3, min(_MOST_CALLS, round(_SECONDS / _seconds(thing))))


def _seconds(thing: Callable[[], Any]) -> float:
    start = time.perf_counter()
    thing()
    return time.perf_counter() - start


# --- The same modules by hand ---------------------------------------------------------------------------------------
# As one would write it for each family without this library.


def _vit(model: PWLForImageClassification) -> Callable[[torch.Tensor], torch.Tensor]:
    first, last = _ends(model)
    embeddings, layernorm, classifier = first.vit.embeddings, last.vit.layernorm, last.classifier
    steps = _steps(model, lambda network: network.vit.layers)

    def run(pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = embeddings(pixel_values)
        for step in steps:
            hidden = step(hidden)
        logits: torch.Tensor = classifier(layernorm(hidden)[:, 0, :])
        return logits

    return run


def _resnet(model: PWLForImageClassification) -> Callable[[torch.Tensor], torch.Tensor]:
    first, last = _ends(model)
    embedder, pooler, classifier = first.resnet.embedder, last.resnet.pooler, last.classifier
    steps = _steps(model, lambda network: [layer for stage in network.resnet.encoder.stages for layer in stage.layers])

    def run(pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = embedder(pixel_values)
        for step in steps:
            hidden = step(hidden)
        logits: torch.Tensor = classifier(pooler(hidden))
        return logits

    return run


def _vgg(model: PWLForImageClassification) -> Callable[[torch.Tensor], torch.Tensor]:
    _, last = _ends(model)
    pooler, classifier = last.vgg.pooler, last.classifier
    steps = _steps(model, lambda network: network.vgg.layers)

    def run(pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = pixel_values
        for step in steps:
            hidden = step(hidden)
        logits: torch.Tensor = classifier(pooler(hidden).flatten(1))
        return logits

    return run


_DIRECT: Mapping[str, Callable[[PWLForImageClassification], Callable[[torch.Tensor], torch.Tensor]]] = {
    "vit": _vit,
    "resnet": _resnet,
    "pwl_vgg": _vgg,
}


def _ends(model: PWLForImageClassification) -> tuple[Any, Any]:
    """The networks of the first and the last block."""
    networks = {"T": "teacher", "S": "student"}
    return getattr(model, networks[model.sources[0]]), getattr(model, networks[model.sources[-1]])


def _steps(model: PWLForImageClassification, units_of: Callable[[Any], Sequence[nn.Module]]) -> list[nn.Module]:
    """Units and encoders in the order of the current stage."""
    stage, config = model.stage, model.config
    assert stage is not None
    steps: list[nn.Module] = []
    if stage:
        steps += list(units_of(model.teacher))[: config.teacher_cuts[stage - 1]]
    if 0 < stage < model.num_stages:
        steps.append(model.encoders[str(stage)])
    if stage < model.num_stages:
        steps += list(units_of(model.student))[config.student_cuts[stage - 1] if stage else 0 :]
    return steps
