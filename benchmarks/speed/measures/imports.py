"""What a fresh process imports before it can load anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.speed.figures import Figure, Measured, Place, ratios
from benchmarks.speed.hub import environment
from benchmarks.speed.peers import running

RUNTIME, TORCH = "pwl_hf.runtime and onnxruntime", "torch and transformers' ViT"

_MODULES = {
    RUNTIME: ("pwl_hf.runtime", "onnxruntime"),
    TORCH: ("torch", "transformers.models.vit.modeling_vit"),
}


def imports(place: Place) -> Measured:
    """Seconds in a fresh process, files in the page cache."""
    seconds: dict[str, list[float]] = {name: [] for name in _MODULES}
    with TemporaryDirectory(dir=place.data) as home:
        for turn in range(place.repeats + 1):
            for name, modules in _MODULES.items():
                taken = _seconds(modules, Path(home))
                if turn:
                    seconds[name].append(taken)
    figures = [
        Figure.of(f"import of {name}", [1000 * value for value in found], "ms") for name, found in seconds.items()
    ]
    return Measured([*ratios(seconds, TORCH), *figures], {"seconds": seconds})


def _seconds(modules: Sequence[str], home: Path) -> float:
    with running("benchmarks.speed.imports", modules, environment(home)) as peer:
        return float(peer.hear())
