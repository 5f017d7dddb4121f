"""What first answers are worth: accuracy and bytes of weights, of PWL's stages and of the alternatives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.speed.figures import Figure, Measured, Place
from benchmarks.speed.measures.alternatives import (
    BF16_WAY,
    INT8_WAY,
    PWL_WAY,
    RUNGS_WAY,
    STUDENT_WAY,
    TEACHER_WAY,
    ways,
)
from benchmarks.speed.measures.alternatives_forms import BF16, INT8
from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.repository.layout import MANIFEST_FILE, STUDENT_FILE
from pwl_hf.modeling.repository.manifest import Manifest

# For a pair with random weights, which can only be compared with its teacher.
_RANDOM_IMAGES = 64


def accuracy(place: Place) -> Measured:
    """Accuracy on test images (of the pair `digits`), and agreement with the teacher."""
    pixel_values, labels = images_of(place)
    known = ways(place)

    @torch.inference_mode()
    def classes(model: Callable[[torch.Tensor], object]) -> torch.Tensor:
        found: torch.Tensor = model(pixel_values).logits.argmax(-1)  # type: ignore[attr-defined]
        return found

    by_teacher = classes(known[TEACHER_WAY].network.from_pretrained(known[TEACHER_WAY].folder))
    figures: list[Figure] = []

    def add(name: str, found: torch.Tensor, size: int) -> None:
        images = f"{len(found)} images"
        if labels is not None:
            figures.append(Figure.of(f"right: {name}", _percent(found == labels), "%", images))
        if name != TEACHER_WAY:
            figures.append(Figure.of(f"as the teacher: {name}", _percent(found == by_teacher), "%", images))
        figures.append(Figure.of(f"weights until then: {name}", [size / 1e3], "kB"))

    add(TEACHER_WAY, by_teacher, _size(known[TEACHER_WAY].folder / STUDENT_FILE))
    for name, file in ((STUDENT_WAY, STUDENT_FILE), (INT8_WAY, INT8), (BF16_WAY, f"{BF16}/{STUDENT_FILE}")):
        way = known[name]
        add(name, classes(way.network.from_pretrained(way.folder)), _size(way.folder / file))
    for name in (PWL_WAY, RUNGS_WAY):
        folder = known[name].folder
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes())
        model = PWLForImageClassification.from_pretrained(folder)
        size = 0
        for number, stage in enumerate(manifest.stages):
            if number:
                model.load_next_stage()
            size += sum(file.bytes for file in stage.files)
            add(f"{name}, stage {number}" + (f" ({model.sources})" if name == RUNGS_WAY else ""), classes(model), size)
    return Measured(figures)


def images_of(place: Place) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (n, 3, height, width) with their labels (n,): the test images of the digits.

    For a pair with random weights, noise without labels.
    """
    if not place.pair.trained:
        shape = (_RANDOM_IMAGES, 3, place.pair.size, place.pair.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)), None
    # Only the digits need scikit-learn.
    from pwl_hf.data.digits import image_processor, load_splits
    from pwl_hf.data.processing import to_tensor

    _, test = load_splits()
    return to_tensor(test.images, image_processor()), torch.tensor(test.labels)


def _percent(right: torch.Tensor) -> list[float]:
    return [100 * right.double().mean().item()]


def _size(path: Path) -> int:
    return path.stat().st_size
