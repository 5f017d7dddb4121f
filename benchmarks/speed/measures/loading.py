"""Time to the first answer and to the teacher, from local files, in one process, imports excluded."""

from __future__ import annotations

from benchmarks.speed.figures import FIRST_ROW, STUDENT_ROW, TEACHER_ROW, WHOLE_ROW, Measured, Place, ratios
from benchmarks.speed.loads import by_stages, by_transformers, taking_turns
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of


def warm(place: Place) -> Measured:
    """Files in the page cache, shards verified before."""
    return _measure(place, cold=False)


def cold(place: Place) -> Measured:
    """Files dropped from the page cache before each."""
    return _measure(place, cold=True)


def _measure(place: Place, *, cold: bool) -> Measured:
    folder, pixel_values = place.repository(), place.pair.pixel_values()
    network = family_of(place.pair.teacher).model_class()

    def answering() -> object:
        model = PWLForImageClassification.from_pretrained(folder)
        for _ in range(model.num_stages):
            model(pixel_values)
            model.load_next_stage()
        return model, model(pixel_values).logits

    things = {
        TEACHER_ROW: by_transformers(network, folder / "teacher", pixel_values),
        STUDENT_ROW: by_transformers(network, folder / "student", pixel_values),
        FIRST_ROW: by_stages(folder, 0, pixel_values),
        WHOLE_ROW: by_stages(folder, place.pair.num_blocks, pixel_values),
        "all stages, an answer at each": answering,
    }
    times = taking_turns(things, place.repeats, folder, cold=cold)
    return Measured(ratios(times, TEACHER_ROW), {"seconds": times})
