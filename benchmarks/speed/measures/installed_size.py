"""How much of a disk the runtime takes with all that it requires, against torch and transformers."""

from __future__ import annotations

from importlib.metadata import version

from benchmarks.speed.figures import Figure, Measured, Place
from benchmarks.speed.installed import installed_bytes, required

RUNTIME = "pwl-hf[runtime]"


def installed_size(place: Place) -> Measured:
    """Bytes of what the extras `runtime` and `torch` require, as it is installed here; the package itself apart."""
    base = f"pwl-hf[torch] with torch {version('torch')}"
    sizes = {
        name: {each: installed_bytes(found) / 1e6 for each, found in required("pwl-hf", extra).items()}
        for name, extra in ((RUNTIME, "runtime"), (base, "torch"))
    }
    totals = {name: [sum(found.values())] for name, found in sizes.items()}
    figures = [
        Figure.ratio("installed size, runtime", totals[RUNTIME], totals[base], base),
        *(Figure.of(name, found, "MB") for name, found in totals.items()),
    ]
    largest = {name: sorted(found.items(), key=lambda item: -item[1]) for name, found in sizes.items()}
    return Measured(figures, {"MB": {name: dict(found) for name, found in largest.items()}})
