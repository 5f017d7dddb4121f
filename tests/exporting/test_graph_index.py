"""`onnx/index.json` of whoever: it is read as what it says, or refused by one error."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwl_hf import RepositoryError
from pwl_hf.modeling.graphs.index import INDEX_FILE, GraphIndex
from pwl_hf.modeling.repository.source import Repository

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def manifest(vit):
    return Repository.open(vit).manifest()


@pytest.fixture
def data(vit):
    return json.loads((vit / INDEX_FILE).read_text(encoding="utf-8"))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value of a document."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def put(data: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of a document with the value at a path changed."""
    data = copy.deepcopy(data)
    if not path:
        return change(data)
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = change(holder[path[-1]])
    return data


def without(data: Any, path: tuple[Any, ...]) -> Any:
    data = copy.deepcopy(data)
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return data


def read(data: Any, manifest: Any) -> GraphIndex | None:
    """What an index is read as; None if it is refused, as it must be if at all."""
    try:
        return GraphIndex.from_json(data if isinstance(data, str | bytes) else json.dumps(data), manifest)
    except RepositoryError as error:
        said = str(error)
    assert INDEX_FILE in said or "pwl_index.json" in said
    assert len(said) < 2000
    return None


def test_it_says_again_what_it_was_read_from(data, manifest):
    index = read(data, manifest)
    assert index is not None
    assert json.loads(index.to_json()) == data


# One fixture for all examples: none of them changes it.
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_changed_one_is_refused_or_says_what_it_holds(data, manifest, draw):
    path = draw.draw(st.sampled_from(places(data)))
    value = draw.draw(_JSON)
    changed = without(data, path) if path and draw.draw(st.booleans()) else put(data, path, lambda _: value)
    index = read(changed, manifest)
    if index is None:
        return
    # Whatever was read holds together, and is the same when it is written and read again.
    for stage in range(len(index.stages)):
        for graph in index.graphs_for(stage):
            assert graph in index.graphs.values()
    assert GraphIndex.from_json(index.to_json(), manifest) == index


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_bytes_are_refused_or_read(data, manifest, draw):
    content = bytearray(json.dumps(data).encode())
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(0, len(content) - 1))
        content[place : place + draw.draw(st.integers(0, 3))] = draw.draw(st.binary(max_size=3))
    read(bytes(content), manifest)


HOSTILE = {
    "nothing": "",
    "not JSON": "{",
    "not UTF-8": b"\xff\xfe{}",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "deep nesting": "[" * 100_000,
    "deep nesting that ends": "[" * 5_000 + "]" * 5_000,
    "not a number": '{"format_version": NaN}',
    "a number without end": '{"format_version": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_index_is_refused(manifest, text):
    assert read(text, manifest) is None


def first(data, **changes):
    """The index with these fields of its first graph."""
    return put(data, ("graphs", 0), lambda graph: {**graph, **changes})


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a newer format": lambda d: {**d, "format_version": 2},
    "a format that is true": lambda d: {**d, "format_version": True},
    "a format of a fraction": lambda d: {**d, "format_version": 1.0},
    "other weights": lambda d: {**d, "fingerprint": "0" * 64},
    "no stages": lambda d: {**d, "stages": []},
    "a stage too few": lambda d: {**d, "stages": d["stages"][:-1]},
    "another order of stages": lambda d: {**d, "stages": d["stages"][::-1]},
    "a mask of other letters": lambda d: put(d, ("stages", 0, "sources"), lambda _: "XXXX"),
    "a mask of 100,000 blocks": lambda d: put(d, ("stages", 0, "sources"), lambda _: "S" * 100_000),
    "300 stages": lambda d: {**d, "stages": d["stages"] * 60},
    "20,000 graphs": lambda d: {**d, "graphs": [{}] * 20_000},
    "5,000 inputs": lambda d: {**d, "inputs": {str(i): [-1] for i in range(5_000)}},
    "no graphs": lambda d: {**d, "graphs": []},
    "a graph that a stage needs is missing": lambda d: {**d, "graphs": d["graphs"][1:]},
    "a path that leads out": lambda d: first(d, path="../student.onnx"),
    "an absolute path": lambda d: first(d, path="/onnx/student.onnx"),
    "a path of a Windows drive": lambda d: first(d, path="C:\\student.onnx"),
    "a path of control characters": lambda d: first(d, path="onnx/\x1b[31m.onnx"),
    "a path of no graph": lambda d: first(d, path="model.safetensors"),
    "another size": lambda d: first(d, bytes=3),
    "a size of a fraction": lambda d: first(d, bytes=float(d["graphs"][0]["bytes"])),
    "a negative size": lambda d: first(d, bytes=-1),
    "a hash of other letters": lambda d: first(d, sha256="G" * 64),
    "another hash": lambda d: first(d, sha256="0" * 64),
    "a hash that is a number": lambda d: first(d, sha256=3),
    "tensors of a file that leads out": lambda d: first(d, tensors={"../x.safetensors": []}),
    "tensors of a file that is not listed": lambda d: first(d, tensors={"other.safetensors": []}),
    "tensors of no file of weights": lambda d: first(d, tensors={"config.json": []}),
    "tensors that are a text": lambda d: first(d, tensors={"model.safetensors": "abc"}),
    "tensors that are numbers": lambda d: first(d, tensors={"model.safetensors": [1]}),
    "labels that are numbers": lambda d: {**d, "labels": [1, 2]},
    "labels by name": lambda d: {**d, "labels": {"0": "a"}},
    "a million labels and one": lambda d: {**d, "labels": [""] * 1_000_001},
    "a problem type that is a number": lambda d: {**d, "problem_type": 1},
    "a processor that is a list": lambda d: {**d, "processor": []},
    "a processor of 5,000 entries": lambda d: {**d, "processor": {"a": list(range(5_000))}},
    "a processor of 40 levels": lambda d: {**d, "processor": {"a": json.loads("[" * 40 + "]" * 40)}},
    "inputs that are a list": lambda d: {**d, "inputs": [1]},
    "an input of a fraction": lambda d: {**d, "inputs": {"pixel_values": [-1, 3.0, 8, 8]}},
    "an input of a text": lambda d: {**d, "inputs": {"pixel_values": "-1"}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_hostile_one_is_refused(data, manifest, change):
    changed = change(data)
    assert changed != data or change(data) is not data
    assert read(changed, manifest) is None


def test_a_graph_that_takes_of_a_later_stage_is_refused(data, manifest):
    place = next(i for i, graph in enumerate(data["graphs"]) if graph["path"] == "onnx/student.onnx")
    later = "teacher/model-00001-of-00004.safetensors"
    changed = put(data, ("graphs", place, "tensors"), lambda tensors: {**tensors, later: []})
    with pytest.raises(RepositoryError, match=f"takes tensors of '{later}', not of stage 0"):
        GraphIndex.from_json(json.dumps(changed), manifest)


def test_a_graph_that_is_listed_twice_is_refused(data, manifest):
    """The same path with other tensors: which of them a reader takes must not be a matter of taste."""
    again = {**data["graphs"][0], "tensors": {}}
    assert read({**data, "graphs": [again, *data["graphs"]]}, manifest) is None


def test_keys_of_later_writers_are_passed_over(data, manifest):
    assert read({**data, "later": {"a": 1}}, manifest) == read(data, manifest)
