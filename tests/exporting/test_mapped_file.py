"""Safetensors files mapped without torch: the same values as safetensors reads, and nothing of a malformed one."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from pwl_hf import RepositoryError
from pwl_hf.modeling.arrays.mapped import FORMATS, MappedFile

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_every_dtype_is_tested():
    assert DTYPES.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_values_equal_those_that_safetensors_reads(tmp_path, name, shape):
    values = (torch.randn(shape) * 50).to(DTYPES[name])
    # A dtype of one byte before it, so that it need not lie where its size divides.
    tensors = {"before": torch.ones(3, dtype=torch.uint8), "values": values, "b.ä\n": torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    mapped = MappedFile(tmp_path / "a.safetensors")
    assert mapped.keys() == tensors.keys()
    assert len(mapped) == 3
    found = mapped["values"]
    assert found.shape == shape
    assert mapped.places["values"].dtype == name
    expected = load_file(tmp_path / "a.safetensors")["values"]
    assert found.tobytes() == expected.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if name != "BF16":
        assert np.array_equal(found, expected.numpy())


def test_tensors_that_lie_at_odd_bytes_are_read(tmp_path):
    values = np.array([1.5, -2.0], dtype="<f4")
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    mapped = MappedFile(write(tmp_path / "a.safetensors", header, b"\x07" + values.tobytes()))
    assert np.array_equal(mapped["b"], values)
    assert mapped["a"].tolist() == [7]


def test_nothing_is_copied_and_nothing_can_be_written(tmp_path):
    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors")
    found = MappedFile(tmp_path / "a.safetensors")["a"]
    assert not found.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_a_name_that_is_not_there_is_no_tensor(tmp_path):
    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    mapped = MappedFile(tmp_path / "a.safetensors")
    assert "__metadata__" not in mapped
    with pytest.raises(KeyError):
        mapped["b"]


def one(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


MALFORMED = {
    "an empty file": b"",
    "less than a length": b"\x01\x00",
    "a length beyond the file": struct.pack("<Q", 100) + b"{}",
    "a length beyond any": struct.pack("<Q", 2**63) + b"{}",
    "no header": struct.pack("<Q", 0),
    "not JSON": b"{",
    "not UTF-8": b'{"\xff": 1}',
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "deep nesting": b"[" * 100_000,
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "a tensor that is a list": {"a": [1]},
    "a tensor that is null": {"a": None},
    "a dtype of 8 bits": one(dtype="F8_E4M3", data_offsets=[0, 2]),
    "a dtype that is none": one(dtype="X"),
    "a dtype that is a list": one(dtype=["F32"]),
    "a dtype that is a number": one(dtype=1),
    "a shape that is a number": one(shape=2),
    "a shape that is a text": one(shape="2"),
    "a negative shape": one(shape=[-2]),
    "two negative shapes": one(shape=[-1, -2]),
    "a shape of a fraction": one(shape=[2.0]),
    "a shape of true": one(shape=[True, 2]),
    "a shape beyond any": one(shape=[2**62, 2**62]),
    "another shape than its bytes": one(shape=[3]),
    "offsets that are one": one(data_offsets=[0]),
    "offsets that are three": one(data_offsets=[0, 4, 8]),
    "offsets that are null": one(data_offsets=None),
    "offsets of fractions": one(data_offsets=[0.0, 8.0]),
    "offsets in reverse": one(data_offsets=[8, 0]),
    "a negative offset": one(data_offsets=[-8, 0]),
    "an offset into the header": one(data_offsets=[-4, 4]),
    "an end beyond the file": one(data_offsets=[8, 16]),
    "an offset beyond any": one(data_offsets=[2**63, 2**63 + 8]),
    "not a number": b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_refused_with_its_name(tmp_path, header):
    path = tmp_path / "bad.safetensors"
    is_whole = isinstance(header, bytes) and not header.startswith((b"{", b"[", b"3", b"n"))
    if is_whole:
        path.write_bytes(header)
    else:
        write(path, header, bytes(8))
    with pytest.raises(RepositoryError, match=r"bad\.safetensors is no safetensors file that can be read") as caught:
        MappedFile(path)
    assert len(str(caught.value)) < 1000


def test_a_file_that_was_cut_short_is_refused(tmp_path):
    save_file({"a": torch.zeros(40), "b": torch.ones(3)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    for size in range(0, len(content), 7):
        (tmp_path / "a.safetensors").write_bytes(content[:size])
        with pytest.raises(RepositoryError):
            MappedFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        },
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',
    ],
    ids=["overlapping", "with a hole", "twice the same name"],
)
def test_what_safetensors_refuses_is_read_within_the_file_at_most(tmp_path, header):
    """Such a file holds what it says nowhere but in itself; torch, which reads it first, refuses it."""
    path = write(tmp_path / "a.safetensors", header, bytes(range(12)))
    with pytest.raises(SafetensorError), safe_open(path, "np"):
        pass
    try:
        mapped = MappedFile(path)
    except RepositoryError:
        return
    for name, place in mapped.places.items():
        assert 0 < place.offset <= place.offset + place.length <= path.stat().st_size
        assert mapped[name].nbytes == place.length


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_damaged_file_is_refused_or_read_as_safetensors_reads_it(tmp_path, draw):
    path = tmp_path / "fuzzed.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 3, dtype=torch.float16)}, path)
    content = bytearray(path.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.integers(0, size - 1))
        content[place : place + draw.draw(st.integers(0, 2))] = draw.draw(st.binary(max_size=2))
    path.write_bytes(content)
    try:
        mapped = MappedFile(path)
        found = {name: mapped[name].tobytes() for name in mapped}
    except RepositoryError:
        return
    try:
        with safe_open(path, "np") as file:
            expected = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        # It is stricter about holes and overlaps, which lead nowhere else.
        return
    assert found == expected
