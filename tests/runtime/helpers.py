"""What each stage answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwl_hf.runtime import RuntimeModel

NUM_STAGES = 3


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
