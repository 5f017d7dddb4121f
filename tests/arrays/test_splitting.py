"""Any bits come back from low precision and what makes it exact."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from pwl_hf import RepositoryError
from pwl_hf.modeling.arrays.packing import UnpackedFile, coarsen, matrix, pack, read_matrices, unpack
from pwl_hf.modeling.arrays.splitting import KINDS, Scratch, floats_of, scaled

# As numpy names what a file holds; bfloat16, which it lacks, as another dtype of two bytes.
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.float16}
both_bits = pytest.mark.parametrize("bits", [8, 4])
every_dtype = pytest.mark.parametrize("dtype", list(KINDS))


def written(folder: Path, given: dict, dtype: str, bits: int = 8) -> tuple[Path, Path]:
    """The two files of a block."""
    packed, paths = pack(given, dtype, bits), (folder / "low", folder / "rest")
    low = {n: a.view(STORED[dtype]) if a.dtype == KINDS[dtype].word else a for n, a in packed.low.items()}
    save_file(low, paths[0], packed.metadata)
    save_file(packed.rest, paths[1])
    return paths


def gaussian(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    values = (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(STORED[dtype]).view(KINDS[dtype].word)


@every_dtype
@both_bits
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bits_come_back(tmp_path_factory, dtype, bits, data):
    word = KINDS[dtype].word
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 40)))
    words = data.draw(arrays.arrays(word, shape))
    given_block = {"a.weight": words, "b.bias": words[0], "count": np.array(7)}
    found = unpack(*written(tmp_path_factory.mktemp("bits"), given_block, dtype, bits), dtype)
    assert found.keys() == given_block.keys()
    for name, array in given_block.items():
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@both_bits
def test_every_pattern_of_sixteen_bits_comes_back(tmp_path, dtype, bits):
    words = np.arange(1 << 16, dtype=np.uint16)
    for scrambled in (words, np.random.default_rng(0).permutation(words)):
        block = {"weight": scrambled.reshape(256, 256)}
        assert np.array_equal(unpack(*written(tmp_path, block, dtype, bits), dtype)["weight"], block["weight"])


def test_edges_of_float32_come_back(tmp_path):
    """NaN with payloads, infinities, denormals, zeros of both signs, and both ends of each bucket."""
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 2.0**-100, 2.0**-126]
    rows = [np.array([*special, *[1.0] * 4], np.float32)]
    q = np.arange(-127.5, 128, 0.5, dtype=np.float32)
    edges = np.concatenate([np.nextafter(q, np.float32(-np.inf)), q, np.nextafter(q, np.float32(np.inf))])
    for scale in (1.0, 1e-3, 2.0**-99, 2.0**-101, 1e-38, 1e30):
        rows.append((edges * np.float32(scale)).astype(np.float32))
    width = max(map(len, rows))
    block = {"weight": np.stack([np.resize(row, width) for row in rows]).view(np.uint32).copy()}
    block["weight"][0, -1] = 0x7F800001
    assert np.array_equal(unpack(*written(tmp_path, block, "float32"), "float32")["weight"], block["weight"])


@every_dtype
def test_low_precision_is_within_half_a_step_of_its_row(tmp_path, dtype):
    block = {"weight": gaussian((64, 96), dtype)}
    low, _ = written(tmp_path, block, dtype)
    coarse, exact = (floats_of(w, dtype) for w in (unpack(low, None, dtype)["weight"], block["weight"]))
    step = np.abs(exact).max(axis=1, keepdims=True) / 127
    rounding = np.abs(exact).max() * {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert np.all(np.abs(coarse - exact) <= step / 2 + rounding)
    assert np.array_equal(unpack(low, None, dtype)["weight"], coarsen(block["weight"], dtype, 8))


@pytest.mark.parametrize(
    ("dtype", "low", "total"), [("float32", 0.24, 0.89), ("bfloat16", 0.48, 0.78), ("float16", 0.48, 0.98)]
)
def test_a_block_takes_fewer_bytes_than_its_shard(tmp_path, dtype, low, total):
    block = {"weight": gaussian((256, 1024), dtype)}
    sizes = [path.stat().st_size / block["weight"].nbytes for path in written(tmp_path, block, dtype)]
    assert sizes[0] < low
    assert sum(sizes) < total


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((768, 768), (768, 768)),
        ((64, 3, 7, 7), (64, 147)),
        ((1, 197, 768), (197, 768)),
        ((768,), None),
        ((1, 1, 768), None),
        ((), None),
        ((1000, 4), None),
    ],
)
def test_what_is_a_matrix(shape, size):
    assert matrix(shape) == size


def test_arrays_of_a_block_are_as_if_mapped(tmp_path):
    block = {"weight": gaussian((16, 32)), "bias": gaussian((16,)), "count": np.array(3)}
    found = UnpackedFile(*written(tmp_path, block, "float32"), "float32", 16 * 33 * 4)
    assert (set(found), len(found)) == (set(block), 3)
    assert (found["weight"].dtype, found.places["weight"].dtype) == (np.float32, "F32")
    assert (found["count"], found.places["count"].dtype) == (3, "I64")
    assert np.array_equal(found["weight"].view(np.uint32), block["weight"])


# --- Files that are not what they must be -----------------------------------------------------------------------


def spoiled(low: Path, change) -> None:
    tensors, metadata = load_file(low), change.pop("metadata", None)
    if metadata is None:
        shapes = {"weight": [16, 32]}
        metadata = {"matrices": json.dumps(shapes)}
    save_file({**tensors, **change}, low, metadata)


BAD = {
    "of no matrices": {"metadata": {}},
    "of matrices that are no JSON": {"metadata": {"matrices": "{"}},
    "of a vector": {"metadata": {"matrices": '{"weight":[512]}'}},
    "of matrices of negative size": {"metadata": {"matrices": '{"weight":[-16,-32]}'}},
    "of more values than there can be": {"metadata": {"matrices": '{"weight":[16,99999999999]}'}},
    "of more rows than scales": {"metadata": {"matrices": '{"weight":[32,16]}'}},
    "of more columns than bytes": {"metadata": {"matrices": '{"weight":[16,33]}'}},
    "of fewer columns than bytes": {"metadata": {"matrices": '{"weight":[16,31]}'}},
    "with a stream that is none": {"planes.q": np.zeros(40, np.uint8)},
    "with an empty stream": {"planes.q": np.empty(0, np.uint8)},
    "with another stream": {"planes.q": np.frombuffer(zstandard.compress(b"short"), np.uint8)},
    "with scales of whole numbers": {"planes.scales": np.zeros(16, np.int32)},
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_another_form_is_refused(tmp_path, name):
    low, rest = written(tmp_path, {"weight": gaussian((16, 32))}, "float32")
    spoiled(low, dict(BAD[name]))
    for refinement in (None, rest):
        with pytest.raises(RepositoryError, match=r"low"):
            unpack(low, refinement, "float32")


@pytest.mark.parametrize("plane", ["planes.0", "planes.1", "planes.2"])
@pytest.mark.parametrize("spoil", ["cut", "turned", "absent"])
def test_a_refinement_of_another_form_is_refused(tmp_path, plane, spoil):
    low, rest = written(tmp_path, {"weight": gaussian((16, 32))}, "float32")
    tensors = load_file(rest)
    stream = tensors.pop(plane)
    if spoil == "cut":
        tensors[plane] = stream[:-5].copy()
    elif spoil == "turned":
        # Past the head: the checksum at the end tells.
        tensors[plane] = np.concatenate([stream[:-3], stream[-3:] ^ np.uint8(1)])
    save_file(tensors, rest)
    with pytest.raises(RepositoryError, match=r"rest"):
        unpack(low, rest, "float32")


def test_a_stream_that_would_expand_without_end_takes_no_memory(tmp_path):
    """A file of half a megabyte that claims a gigabyte, and has a stream that expands to it."""
    shape = (1 << 14, 1 << 16)
    low, _ = written(tmp_path, {"weight": gaussian((16, 32))}, "float32")
    bomb = zstandard.ZstdCompressor(level=19, write_checksum=True).compressobj()
    zeros = bytes(1 << 24)
    content = b"".join([*(bomb.compress(zeros) for _ in range(math.prod(shape) >> 24)), bomb.flush()])
    assert len(content) < 1 << 19
    spoiled(
        low,
        {
            "metadata": {"matrices": json.dumps({"weight": shape})},
            "planes.q": np.frombuffer(content, np.uint8),
            "planes.scales": np.zeros(shape[0], np.float32),
        },
    )
    tracemalloc.start()
    try:
        with pytest.raises(RepositoryError, match="would have 1073741824 values, there can be 512 at most"):
            UnpackedFile(low, None, "float32", 16 * 32 * 4)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@every_dtype
def test_merging_takes_a_tenth_more_memory_than_its_result(tmp_path, dtype):
    block = {f"{i}.weight": gaussian((1024, 4096), dtype, i) for i in range(4)}
    files, size = written(tmp_path, block, dtype), sum(array.nbytes for array in block.values())
    for refinement in (None, files[1]):
        tracemalloc.start()
        try:
            unpack(files[0], refinement, dtype)
            assert tracemalloc.get_traced_memory()[1] < 1.1 * size
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("window", [24, 27])
def test_a_stream_that_asks_for_a_large_window_is_refused(tmp_path, window):
    low, _ = written(tmp_path, {"weight": gaussian((16, 32))}, "float32")
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=window)
    made = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    spoiled(low, {"planes.q": np.frombuffer(made.compress(bytes(512)) + made.flush(), np.uint8)})
    with pytest.raises(RepositoryError, match=r"planes\.q"):
        unpack(low, None, "float32")


@pytest.mark.parametrize("more", ["rubbish", "a frame"])
def test_what_follows_a_stream_is_refused(tmp_path, more):
    low, _ = written(tmp_path, {"weight": gaussian((16, 32))}, "float32")
    after = {"rubbish": b"rubbish", "a frame": zstandard.compress(b"more")}[more]
    stream = load_file(low)["planes.q"].tobytes()
    spoiled(low, {"planes.q": np.frombuffer(stream + after, np.uint8)})
    with pytest.raises(RepositoryError, match=r"planes\.q"):
        unpack(low, None, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_are_rounded_as_ieee_says(dtype):
    """All q, with scales of every exponent, the ends of the range in which float16 is rounded in another way too."""
    q = np.tile(np.arange(-128, 128, dtype=np.int8), (1, 1))
    chance, scratch = np.random.default_rng(0), Scratch()
    edges = [0.0, 2.0**-14, np.nextafter(np.float32(2.0**-14), np.float32(0)), 2.0**9, 513.0, 2.0**-24, 2.0**-100]
    drawn = (2.0 ** chance.uniform(-30, 12, 4000)).astype(np.float32)
    short = np.float32(2.0) ** chance.integers(-16, 9, 500) * chance.integers(1, 2048, 500).astype(np.float32) / 1024
    for scale in (*edges, *drawn, *short):
        scales, out = np.full((1, 1), scale, np.float32), np.empty(q.shape, np.uint16)
        scaled(q, scales, dtype, out, scratch)
        products = torch.from_numpy(q.astype(np.float32) * scales)
        expected = products.to(getattr(torch, dtype)).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(out, expected), scale


def test_what_a_file_claims_is_not_made_before_it_is_seen(tmp_path):
    claims = {"matrices": json.dumps({"weight": [16, (1 << 31) // 16]})}
    assert math.prod(read_matrices(tmp_path, claims)["weight"]) == 1 << 31
    low, _ = written(tmp_path, {"weight": gaussian((16, 32))}, "float32")
    spoiled(low, {"metadata": claims})
    with pytest.raises(RepositoryError, match="ends too soon"):
        unpack(low, None, "float32")
