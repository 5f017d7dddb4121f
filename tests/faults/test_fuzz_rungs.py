"""Files of low precision of arbitrary bytes: refused, or read as an independent reader does, in bounded memory."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load as load_bytes

from pwl_hf import PWLForImageClassification
from pwl_hf.modeling.arrays.packing import UnpackedFile
from pwl_hf.modeling.repository import verification
from pwl_hf.modeling.repository.layout import quantised_file, refinement_file
from pwl_hf.modeling.sources import PartId
from tests.faults.make_corpus import join, small_repository, split
from tests.faults.test_fuzz import flipped, header_changed, outcome, rearranged, store_for
from tests.repository.helpers import load, shard

LOW, REST = quantised_file(1, 2), refinement_file(1, 2)
PARTS = {LOW: PartId("quantised", 1), REST: PartId("teacher", 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose exact blocks can be had by refinement alone; not to be written to."""
    plain = small_repository(tmp_path_factory.mktemp("fuzz") / "plain")
    model = load(plain)
    model.add_tier()
    made = plain.parent / "rungs"
    model.save_pretrained(made)
    for block in (1, 2):
        (made / shard(block, 2)).unlink()
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> PWLForImageClassification:
    return load(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Each case writes a new file: waiting for the clock to tick would be all that it does.
    monkeypatch.setattr(verification, "_TICK", 0)
    return shutil.copytree(folder, tmp_path / "repo")


def read_again(low: bytes, rest: bytes | None) -> dict[str, np.ndarray]:
    """The matrices of a block as docs/rungs.md says, by zstd's and numpy's plainest means."""

    def plane(content: bytes, name: str, dtype: str) -> np.ndarray:
        stream = load_bytes(content)[name].numpy().tobytes()
        return np.frombuffer(zstandard.ZstdDecompressor().decompressobj().decompress(stream), dtype)

    header = json.loads(split(low)[0])
    q, scales = plane(low, "planes.q", "i1"), load_bytes(low)["planes.scales"].numpy()
    residual = np.zeros(q.size, np.uint32)
    if rest is not None:
        lowest, middle, highest = (plane(rest, f"planes.{i}", d) for i, d in enumerate(("<u2", "u1", "u1")))
        residual = lowest + (middle.astype(np.uint32) << 16) + (highest.astype(np.uint32) << 24) - np.uint32(1 << 23)
    found, at, row = {}, 0, 0
    for name, shape in json.loads(header["__metadata__"]["matrices"]).items():
        rows = shape[0] if shape[0] != 1 else shape[1]
        size = int(np.prod(shape))
        with np.errstate(all="ignore"):
            product = q[at : at + size].reshape(rows, -1).astype(np.float32) * scales[row : row + rows, None]
        words = product.reshape(-1).view(np.uint32) + residual[at : at + size]
        found[name], at, row = words, at + size, row + rows
    return found


def stream_changed(chance: random.Random, content: bytes) -> bytes:
    """A file of the tier one of whose streams holds something else, of any length, and is what zstd has made."""
    header, data = split(content)
    parsed = json.loads(header)
    name = chance.choice([name for name in parsed if name.startswith("planes.") and name != "planes.scales"])
    start, end = parsed[name]["data_offsets"]
    plain = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(data[start:end]))
    action = chance.randrange(4)
    if action == 0:
        plain[chance.randrange(len(plain))] ^= 1 << chance.randrange(8)
    elif action == 1:
        del plain[chance.randrange(len(plain)) :]
    elif action == 2:
        plain += bytes(chance.choice([1, 1000, 1 << 22]))
    else:
        plain[:] = chance.choice([b"", bytes(1 << 22), bytes(len(plain)), b"\xff" * len(plain), b"\x80" * len(plain)])
    stream = zstandard.compress(bytes(plain))
    grown = len(stream) - (end - start)
    for other in parsed.values():
        if "data_offsets" in other:
            other["data_offsets"] = [at + grown if at >= end else at for at in other["data_offsets"]]
    parsed[name] |= {"shape": [len(stream)], "data_offsets": [start, start + len(stream)]}
    return join(json.dumps(parsed).encode(), data[:start] + stream + data[end:])


def metadata_changed(chance: random.Random, content: bytes) -> bytes:
    """A file whose word of its matrices is another one."""
    header, data = split(content)
    parsed = json.loads(header)
    matrices = rearranged(chance, json.loads(parsed["__metadata__"].get("matrices", "{}")))
    parsed["__metadata__"]["matrices"] = json.dumps(matrices)
    return join(json.dumps(parsed).encode(), data)


CHANGES = [header_changed, stream_changed, metadata_changed, flipped]


@pytest.mark.parametrize(
    ("path", "change"), [*((LOW, change) for change in CHANGES), *((REST, change) for change in CHANGES[:2])]
)
def test_file_of_the_right_hash_is_refused_or_read_as_an_independent_reader_does(
    model, copied, path, change: Callable[[random.Random, bytes], bytes]
):
    chance, sound = random.Random(f"{path} {change.__name__}"), (copied / path).read_bytes()
    low = (copied / LOW).read_bytes()
    part = model.parts.inventory.parts[PARTS[path]]
    read = refused = 0
    tracemalloc.start()
    for i in range(100):
        try:
            content = change(chance, sound)
        except (ValueError, RecursionError):
            continue  # What JSON cannot say.
        (copied / path).write_bytes(content)
        store = store_for(model, copied, path, content)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        tensors, error = outcome(lambda: store.read(part))  # noqa: B023
        assert tracemalloc.get_traced_memory()[1] - before < len(content) + (1 << 21), i
        if error is not None:
            assert Path(path).name in error, (i, error)
            refused += 1
            continue
        read += 1
        assert {n: tuple(t.shape) for n, t in tensors.items()} == {n: spec.shape for n, spec in part.specs.items()}
        again = read_again(content if path == LOW else low, content if path == REST else None)
        stored = {spec.checkpoint_name: tensors[name] for name, spec in part.specs.items()}
        for name, words in again.items():
            assert np.array_equal(stored[name].contiguous().view(torch.int32).numpy().view(np.uint32).ravel(), words), i
    tracemalloc.stop()
    assert read + refused > 50
    if change is stream_changed:
        assert read > 10  # another bit, and as many
    assert refused > 20


def test_the_runtimes_reader_makes_no_more_than_the_shard_has(copied):
    chance = random.Random(5)
    low, rest = ((copied / path).read_bytes() for path in (LOW, REST))
    sound = UnpackedFile(copied / LOW, copied / REST, "float32", 1 << 20)
    size, refused = sum(array.nbytes for array in sound.values()), 0
    changes = [(path, content, change) for path, content in ((LOW, low), (REST, rest)) for change in CHANGES]
    tracemalloc.start()
    for path, content, change in changes * 15:
        try:
            changed = change(chance, content)
        except (ValueError, RecursionError):
            continue
        (copied / path).write_bytes(changed)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found, error = outcome(lambda: UnpackedFile(copied / LOW, copied / REST, "float32", size))
        assert tracemalloc.get_traced_memory()[1] - before < len(changed) + (1 << 21)
        refused += error is not None
        if found is not None:
            assert sum(array.nbytes for array in found.values()) <= size + len(changed)
        (copied / path).write_bytes(content)
    tracemalloc.stop()
    assert refused > 40
