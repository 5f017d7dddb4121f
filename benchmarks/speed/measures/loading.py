"""Time to the first answer and to the teacher, from local files, in one process; imports are not in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.speed.figures import Measured, Place, ratios
from benchmarks.speed.timing import drop_from_page_cache, interleaved
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families import family_of

TEACHER = "transformers' teacher"


def warm(place: Place) -> Measured:
    """Files in the page cache, shards verified before."""
    return _measure(place, cold=False)


def cold(place: Place) -> Measured:
    """Files dropped from the page cache before each."""
    return _measure(place, cold=True)


def _measure(place: Place, *, cold: bool) -> Measured:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    folder, pixel_values = place.repository(), place.pair.pixel_values()
    network = family_of(place.pair.teacher).model_class()

    def plain(path: Path) -> Callable[[], object]:
        def answer() -> object:
            model = network.from_pretrained(path)
            return model, model(pixel_values).logits

        return answer

    def first() -> object:
        model = PWLForImageClassification.from_pretrained(folder)
        return model, model(pixel_values).logits

    def grow(answering: bool) -> Callable[[], object]:
        def answer() -> object:
            model = PWLForImageClassification.from_pretrained(folder)
            for _ in range(model.num_stages):
                if answering:
                    model(pixel_values)
                model.load_next_stage()
            return model, model(pixel_values).logits

        return answer

    things = {
        TEACHER: plain(folder / "teacher"),
        "transformers' student": plain(folder / "student"),
        "first answer": first,
        "all stages, one answer at the end": grow(False),
        "all stages, an answer at each": grow(True),
    }
    with torch.inference_mode():
        before = (lambda: drop_from_page_cache(folder)) if cold else lambda: None
        times = interleaved(things, place.repeats, before)
    return Measured(ratios(times, TEACHER, TEACHER), {"seconds": times})
