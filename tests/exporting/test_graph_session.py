"""A graph of whoever runs over what it is handed, reads nothing else, and is refused by one error if it cannot."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from pwl_hf import RepositoryError
from pwl_hf.modeling.arrays.mapped import MappedFile
from pwl_hf.modeling.graphs.index import Graph
from pwl_hf.modeling.graphs.session import GraphSession, run_chain
from tests.exporting.helpers import mapped, read_index, run_stage, sessions, small_images

FILE, OTHER = "a.safetensors", "b.safetensors"
IMAGES = {"pixel_values": np.ones((2, 3), dtype=np.float32)}


@pytest.fixture
def folder(tmp_path):
    """Two files of weights, and a third outside that nobody may read."""
    (tmp_path / "repo").mkdir()
    save_file({"w": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "repo" / FILE)
    save_file({"w": torch.tensor([5.0, 6.0, 7.0])}, tmp_path / "repo" / OTHER)
    save_file({"w": torch.tensor([8.0, 8.0, 8.0])}, tmp_path / "secret.safetensors")
    return tmp_path / "repo"


def model(
    name: str = f"{FILE}:w",
    location: str = FILE,
    offset: int | None = None,
    length: int | None = 12,
    data_type: int = TensorProto.FLOAT,
    dims: tuple[int, ...] = (3,),
    domain: str = "",
    op: str = "Mul",
) -> bytes:
    """A graph that multiplies what it gets by a weight."""
    weight = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node(op, ["pixel_values", name], ["logits"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def session(folder: Path, content: bytes, tensors: dict[str, tuple[str, ...]] | None = None, **files: Path):
    tensors = {FILE: ("w",)} if tensors is None else tensors
    graph = Graph("onnx/student.onnx", len(content), hashlib.sha256(content).hexdigest(), tensors)
    handed = {FILE: MappedFile(folder / FILE), **{name: MappedFile(path) for name, path in files.items()}}
    return GraphSession(graph, content, handed, onnxruntime.SessionOptions)


def test_it_runs_over_what_it_is_handed(folder):
    found = session(folder, model(offset=0))(None, IMAGES)
    assert found.tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    "location", ["../secret.safetensors", "/etc/hostname", "nowhere.safetensors", "", ".", "../repo/a.safetensors"]
)
def test_what_a_graph_says_of_locations_is_never_looked_at(folder, location, monkeypatch):
    """Tensors are handed over by name; another location changes nothing, and opens nothing."""
    monkeypatch.chdir(folder)
    try:
        found = session(folder, model(location=location, offset=0))(None, IMAGES)
    except RepositoryError:
        return
    assert found.tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    "location", ["../secret.safetensors", "/etc/hostname", FILE, OTHER, "*/secret.safetensors", "./a.safetensors"]
)
def test_what_is_not_handed_over_is_not_read(folder, location, monkeypatch):
    """Not from beside the graph, not from the working directory, and not from elsewhere."""
    if location == "/etc/hostname":
        location = str(folder.parent / "secret.safetensors")
    monkeypatch.chdir(folder)
    with pytest.raises(RepositoryError, match=r"'onnx/student\.onnx' cannot be run by onnxruntime"):
        session(folder, model(name="mine", location=location, offset=80), {})(None, IMAGES)


@pytest.mark.parametrize("folder_name", ["onnx", "no folder: tensors are handed over"])
def test_a_folder_of_the_name_that_it_is_told_is_none(folder, folder_name, monkeypatch):
    """Whoever makes such a folder in the working directory is not asked, either."""
    (folder / folder_name).mkdir()
    (folder / folder_name / FILE).write_bytes((folder / OTHER).read_bytes())
    monkeypatch.chdir(folder)
    with pytest.raises(RepositoryError, match="cannot be run by onnxruntime"):
        session(folder, model(name="mine", location=FILE, offset=80), {})(None, IMAGES)


GARBAGE = {
    "nothing": b"",
    "no graph": b"not a graph",
    "half of one": model()[:50],
    "a graph of nothing": onnx.ModelProto().SerializeToString(),
    "another dtype than the file's": model(offset=0, data_type=TensorProto.INT32),
    "another shape than the file's": model(offset=0, dims=(3, 1), length=12),
    "more than the file's": model(offset=0, dims=(4,), length=16),
    "an operator of another's": model(offset=0, domain="com.example", op="Steal"),
    "an operator that there is not": model(offset=0, op="Nothing"),
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_what_cannot_be_run_is_refused_with_the_graphs_name(folder, content):
    with pytest.raises(RepositoryError, match=r"'onnx/student\.onnx' cannot be run by onnxruntime"):
        session(folder, content)


def test_a_tensor_that_a_file_lacks_is_refused(folder):
    with pytest.raises(RepositoryError, match=r"takes the tensor 'v', which 'a\.safetensors' lacks"):
        session(folder, model(name=f"{FILE}:v"), {FILE: ("v",)})


def test_a_file_that_is_not_handed_over_is_refused(folder):
    with pytest.raises(RepositoryError, match=r"b\.safetensors"):
        session(folder, model(name=f"{OTHER}:w"), {OTHER: ("w",)})


def test_what_a_graph_gives_is_what_it_is_asked_for(vit):
    images = {"pixel_values": small_images("vit", 3).numpy()}
    made = sessions(vit, 2)
    features = made[0](None, images)
    assert (features.dtype, features.shape) == (np.float32, (3, 17, 24))
    found = made[2](made[1](features, {}), {})
    assert (found.dtype, found.shape) == (np.float32, (3, 5))
    assert np.array_equal(run_chain(made, images), found)
    with pytest.raises(ValueError, match="there is no graph to run"):
        run_chain([], images)


def test_weights_are_not_copied_from_their_files(vit):
    """A session holds on to the files' memory; dropping them first does no harm."""
    graphs = read_index(vit).graphs_for(0)
    files = mapped(vit, graphs)
    made = GraphSession(graphs[0], (vit / graphs[0].path).read_bytes(), files, onnxruntime.SessionOptions)
    expected = run_stage(vit, 0, small_images("vit"))
    del files
    for _ in range(3):
        assert np.array_equal(made(None, {"pixel_values": small_images("vit").numpy()}), expected)
