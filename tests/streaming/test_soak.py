"""Growing and stepping down again and again costs nothing that stays."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import threading
from itertools import combinations
from pathlib import Path

import pytest
import torch

from pwl_hf import PWLForImageClassification
from tests.streaming.helpers import own_threads, until
from tests.tiny import tiny_images

on_linux = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="private bytes and descriptors are read from Linux's /proc"
)

# In a process of its own: a test runner's own memory goes up and down.
_SOAK = """
import gc, json, os, sys, threading, time
import torch
from pwl_hf import PWLForImageClassification

torch.set_num_threads(1)
# What the imports left is looked through once and for all.
gc.freeze()
def anonymous():
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

def measure(folder):
    while any(t.name.startswith("pwl-") for t in threading.enumerate()):
        time.sleep(0.001)
    gc.collect()
    with open("/proc/self/maps") as file:
        maps = sum(folder in line for line in file)
    return [anonymous(), threading.active_count(), len(os.listdir("/proc/self/fd")), maps]

def soak(folder, side, cycles):
    images, found = torch.zeros(2, 3, side, side), []
    # In another dtype than the stored one, weights are private bytes: what is kept is seen.
    model = PWLForImageClassification.from_pretrained(folder, dtype=torch.float64)
    for cycle in range(cycles):
        with model.stream_stages():
            model(images)
        model(images)
        for stage in (2, 0):
            model.set_stage(stage)
            model(images)
        if cycle % 3 == 2:
            found.append(measure(folder))
    return found

with torch.no_grad():
    found = [soak(folder, side, int(sys.argv[1])) for folder, side in json.loads(sys.argv[2])]
print(json.dumps(found))
"""


def soak(folders: dict[str, Path], cycles: int, cwd: Path) -> list[list[list[int]]]:
    """Every three cycles: private bytes, threads, descriptors and mappings; for each family."""
    places = json.dumps([[str(folder), tiny_images(family).shape[-1]] for family, folder in folders.items()])
    # A fixed threshold: every larger tensor is a mapping of its own, given back when it is freed.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", _SOAK, str(cycles), places]
    done = subprocess.run(
        command, env=env | {"OMP_NUM_THREADS": "1"}, cwd=cwd, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return found


# safetensors 0.8 leaves 56 to 64 bytes behind with every tensor it reads (shown with `load_file` alone); a cycle
# reads some 400.
READING = 48_000


def check(found: list[list[int]], folder: Path) -> None:
    memory, threads, descriptors, maps = zip(*found, strict=True)
    # The middle one of the slopes between any two readings after the first quarter: single ones are far too high.
    settled = list(enumerate(memory[len(found) // 4 :]))
    growth = statistics.median((y - x) / (3 * (j - i)) for (i, x), (j, y) in combinations(settled, 2))
    # What a kept block would add, in the dtype that is cast to.
    block = 2 * max(path.stat().st_size for path in (folder / "teacher").glob("*.safetensors"))
    assert growth < READING < block, f"{growth / 1000:.0f} kB a cycle"
    assert len(set(threads)) == 1
    assert len(set(descriptors)) == 1
    assert len(set(maps)) == 1


@on_linux
@pytest.mark.parametrize(
    ("families", "cycles"),
    [(("resnet",), 36), pytest.param(("vit", "resnet", "swin"), 300, marks=pytest.mark.slow)],
    ids=["thirty_six", "three_hundred"],
)
def test_cycles_keep_memory_threads_and_descriptors_flat(
    saved, tmp_path: Path, families: tuple[str, ...], cycles: int
) -> None:
    folders = {family: saved(family) for family in families}
    for folder, found in zip(folders.values(), soak(folders, cycles, tmp_path), strict=True):
        assert len(found) == cycles // 3
        check(found, folder)


def test_thirty_streams_of_new_models_leave_no_thread_and_no_object(load) -> None:
    def count() -> int:
        gc.collect()
        kinds = (PWLForImageClassification, torch.nn.Parameter)
        return sum(issubclass(type(thing), kinds) for thing in gc.get_objects())

    before, threads = count(), threading.active_count()
    for number in range(30):
        model = load(stream=True)
        if number % 2:
            model.stream.cancel()
        model.stream.wait()
    until(lambda: not own_threads())
    del model
    assert (count(), threading.active_count()) == (before, threads)
