"""Time to the first answer and to the teacher, from local files, against transformers' own loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.pairs import Pair
from benchmarks.timing import Spread, drop_from_page_cache, interleaved
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families import family_of


def measure_loading(pair: Pair, folder: Path, *, repeats: int, cold: bool) -> dict[str, Spread]:
    """Load and answer one image, in each way, in one process with one thread; imports are not in it.

    Returns:
        `teacher` and `student`: transformers' `from_pretrained` and a forward pass. `pwl first answer`: stage 0 and
        a forward pass. `pwl all stages`: stage after stage to the teacher, and one forward pass at the end, as
        for `teacher`. `pwl all stages, answering`: with a forward pass at every stage.
    """
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    pixel_values = pair.pixel_values()
    network = family_of(pair.teacher).model_class()

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
        "teacher": plain(folder / "teacher"),
        "student": plain(folder / "student"),
        "pwl first answer": first,
        "pwl all stages": grow(False),
        "pwl all stages, answering": grow(True),
    }
    with torch.inference_mode():
        return interleaved(things, repeats, (lambda: drop_from_page_cache(folder)) if cold else lambda: None)
