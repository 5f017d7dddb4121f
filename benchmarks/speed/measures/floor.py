"""Time to the first answer and to the teacher, against the least that any loader has to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.speed.bare import Bare, Stopwatch
from benchmarks.speed.figures import (
    FIRST_ROW,
    STUDENT_ROW,
    TEACHER_ROW,
    WHOLE_ROW,
    Figure,
    Measured,
    Place,
    ratios,
)
from benchmarks.speed.loads import by_transformers, taking_turns
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.families.registry import family_of

STUDENT_FLOOR, TEACHER_FLOOR = "the student's bare floor", "the teacher's bare floor"

BUILD, FILL, LOAD, ANSWER = "build the modules", "map and assign the tensors", "load", "answer"


def warm(place: Place) -> Measured:
    """Files in the page cache, shards verified before."""
    return _measure(place, cold=False)


def cold(place: Place) -> Measured:
    """Files dropped from the page cache before each."""
    return _measure(place, cold=True)


def _measure(place: Place, *, cold: bool) -> Measured:
    folder, pixel_values = place.repository(), place.pair.pixel_values()
    network = family_of(place.pair.teacher).model_class()
    watches: dict[str, Stopwatch] = {}

    def bare(name: str, path: Path, watch: Stopwatch) -> Callable[[], object]:
        known = Bare.of(path, getattr(place.pair, path.name))
        watches[name] = watch

        def answer() -> object:
            watch.start()
            model = known.build()
            watch.lap(BUILD)
            known.fill(model)
            watch.lap(FILL)
            logits = model(pixel_values).logits
            watch.lap(ANSWER)
            return model, logits

        return answer

    def grow(name: str, until: int, watch: Stopwatch) -> Callable[[], object]:
        watches[name] = watch

        def answer() -> object:
            watch.start()
            model = PWLForImageClassification.from_pretrained(folder)
            for _ in range(until):
                model.load_next_stage()
            watch.lap(LOAD)
            logits = model(pixel_values).logits
            watch.lap(ANSWER)
            return model, logits

        return answer

    of_student = {
        STUDENT_FLOOR: bare(STUDENT_FLOOR, folder / "student", Stopwatch(BUILD, FILL, ANSWER)),
        FIRST_ROW: grow(FIRST_ROW, 0, Stopwatch(LOAD, ANSWER)),
        STUDENT_ROW: by_transformers(network, folder / "student", pixel_values),
    }
    of_teacher = {
        TEACHER_FLOOR: bare(TEACHER_FLOOR, folder / "teacher", Stopwatch(BUILD, FILL, ANSWER)),
        WHOLE_ROW: grow(WHOLE_ROW, place.pair.num_blocks, Stopwatch(LOAD, ANSWER)),
        TEACHER_ROW: by_transformers(network, folder / "teacher", pixel_values),
    }
    times = taking_turns(of_student | of_teacher, place.repeats, folder, cold=cold)
    figures = ratios({name: times[name] for name in of_student}, STUDENT_FLOOR)
    figures += ratios({name: times[name] for name in of_teacher}, TEACHER_FLOOR)
    for name, watch in watches.items():
        for part, seconds in watch.seconds.items():
            # The first round does not count.
            figures.append(Figure.of(f"{name}: {part}", [1000 * value for value in seconds[1:]], "ms"))
    return Measured(figures, {"seconds": times})
