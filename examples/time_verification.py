"""How long the student's file takes to be hashed, beside the building of the model that hides it.

    python examples/time_verification.py digits-pwl

The first round is what a fresh process pays, imports of the network's class included; the others, a later load.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pwl_hf import PWLConfig, PWLForImageClassification
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.repository.verification import sha256_of


def seconds(work: Callable[[], object]) -> float:
    """The wall-clock time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, rounds: int) -> list[tuple[float, float, float]]:
    """Seconds to build the model without weights, to hash the student's file, and to verify it when remembered."""
    repository = Repository.open(folder)
    student = repository.manifest().stages[0].files
    config = PWLConfig.from_pretrained(folder)
    repository.verify(student)
    found = []
    for _ in range(rounds):
        build = seconds(lambda: PWLForImageClassification(config, vacant=True))
        hashing = seconds(lambda: [sha256_of(folder / entry.path) for entry in student])
        found.append((build, hashing, seconds(lambda: repository.verify(student))))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print a line a round, in milliseconds."""
    parser = argparse.ArgumentParser(description="Times of verifying the student, beside those of building.")
    parser.add_argument("folder", type=Path, help="a saved PWL repository")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    for build, hashing, remembered in measure(chosen.folder, chosen.rounds):
        sys.stdout.write(
            f"build {build * 1e3:.1f} ms, hash {hashing * 1e3:.1f} ms ({hashing / build:.2f} of it), "
            f"remembered {remembered * 1e3:.1f} ms ({remembered / build:.2f})\n"
        )


if __name__ == "__main__":
    main()
