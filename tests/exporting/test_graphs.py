"""The graphs of a repository hold no weights: each is a range of the repository's own files, and says whose."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path, PurePosixPath

import onnx
import pytest
from safetensors.numpy import load_file

from pwl_hf.modeling.exporting import graphs
from pwl_hf.modeling.graphs.index import INDEX_FILE, GraphIndex, graphs_of
from pwl_hf.modeling.repository.source import Repository
from tests.children import python
from tests.exporting.helpers import (
    assert_equals_torch,
    locations,
    models_of,
    read_index,
)
from tests.exporting.odd_net import odd_images, odd_model
from tests.repository.helpers import load, read_json, tree
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


def test_every_weight_is_a_range_of_the_repositorys_files(vit):
    files = {path.relative_to(vit).as_posix(): path.read_bytes() for path in vit.rglob("*.safetensors")}
    tensors = {file: load_file(vit / file) for file in files}
    index = read_index(vit)
    for path, model in models_of(vit).items():
        folder = PurePosixPath(path).parent if path == "teacher/model.onnx" else PurePosixPath()
        found: dict[str, set[str]] = {}
        external = {tensor.name: tensor for tensor in model.graph.initializer if tensor.external_data}
        for name, where in locations(model).items():
            file, _, tensor = name.partition(":")
            assert (folder / where["location"]).as_posix() == file
            expected = tensors[file][tensor]
            begin, length = int(where["offset"]), int(where["length"])
            assert files[file][begin : begin + length] == expected.tobytes()
            assert tuple(external[name].dims) == expected.shape
            assert external[name].data_type == onnx.helper.np_dtype_to_tensor_dtype(expected.dtype)
            found.setdefault(file, set()).add(tensor)
        assert found == {file: set(names) for file, names in index.graphs[path].tensors.items()}
        # No graph may have the bytes of a weight as a constant of its own.
        for constant in model.graph.initializer:
            if not constant.external_data:
                assert constant.ByteSize() < 1000, (path, constant.name)
        for node in model.graph.node:
            assert node.ByteSize() < 1000


def test_every_tensor_of_the_teacher_is_in_its_graph_once(vit):
    model = models_of(vit)["teacher/model.onnx"]
    shards = {path.relative_to(vit).as_posix() for path in (vit / "teacher").glob("*.safetensors")}
    expected = {f"{shard}:{name}" for shard in shards for name in load_file(vit / shard)}
    names = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    assert sorted(names) == sorted(expected)


def test_no_location_leads_out_and_none_is_absolute(vit):
    for model in models_of(vit).values():
        for where in locations(model).values():
            parts = PurePosixPath(where["location"]).parts
            assert not where["location"].startswith("/")
            assert ".." not in parts
            assert "\\" not in where["location"]
    for where in locations(models_of(vit)["teacher/model.onnx"]).values():
        assert "/" not in where["location"]


def test_graphs_are_small_and_tell_neither_torch_nor_a_machine(vit):
    found = models_of(vit)
    assert sum((vit / path).stat().st_size for path in found) < 300_000
    for path, model in found.items():
        content = (vit / path).read_bytes()
        for word in (b"pkg.torch", b"torch.", b"nn.Module", b"site-packages", b".py", str(ROOT).encode(), b"/tmp/"):
            assert word not in content, word
        assert not model.metadata_props
        assert not model.graph.metadata_props
        for node in model.graph.node:
            assert not node.metadata_props
            assert not node.doc_string
            assert node.domain == ""
        assert [entry.version for entry in model.opset_import] == [20]
        assert model.ir_version <= 10


def test_onnx_takes_them_with_their_files(vit, tmp_path):
    # By path: types and shapes of everything are inferred, over the weights.
    onnx.checker.check_model(str(vit / "teacher" / "model.onnx"), full_check=True)
    folder = shutil.copytree(vit, tmp_path / "flat")
    for path in (folder / "onnx").glob("*.onnx"):
        onnx.checker.check_model(str(path.rename(folder / path.name)), full_check=True)


def test_batch_is_free_and_all_else_is_fixed(vit):
    for path, model in models_of(vit).items():
        for value in (*model.graph.input, *model.graph.output):
            batch, *rest = value.type.tensor_type.shape.dim
            assert batch.dim_param == "batch", path
            assert all(dim.dim_value > 0 for dim in rest), path


def test_index_agrees_with_the_manifest_and_the_config(vit):
    repository = Repository.open(vit)
    manifest, index = repository.manifest(), read_index(vit)
    attached = {entry.path: entry for entry in manifest.attachments}
    assert attached.keys() == {*index.graphs, INDEX_FILE}
    for path, graph in index.graphs.items():
        content = (vit / path).read_bytes()
        assert (graph.bytes, graph.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert (attached[path].bytes, attached[path].sha256) == (graph.bytes, graph.sha256)
    assert index.fingerprint == manifest.fingerprint == read_json(vit / "config.json")["fingerprint"]
    assert index.stages == manifest.schedule.masks
    assert index.inputs == {"pixel_values": (-1, 3, 16, 16)}
    assert index.labels == ("ant", "bee", "cat", "dog", "elk")
    assert (index.problem_type, index.processor) == (None, None)
    for stage, mask in enumerate(index.stages):
        needed = {entry.path for entry in manifest.files_for(mask)}
        assert {file for graph in index.graphs_for(stage) for file in graph.tensors} <= needed
    # Stage 0 is one graph over one file.
    assert [(g.path, list(g.tensors)) for g in index.graphs_for(0)] == [("onnx/student.onnx", ["model.safetensors"])]
    assert GraphIndex.from_json(index.to_json(), manifest) == index


def test_graphs_add_to_the_files_and_change_none(vit, tmp_path):
    tiny_model("vit").save_pretrained(tmp_path / "plain")
    plain, exported = tree(tmp_path / "plain"), tree(vit)
    added = exported.keys() - plain.keys()
    assert {path for path in added if not path.startswith("onnx/")} == {"teacher/model.onnx"}
    changed = {path for path in plain if plain[path] != exported[path]}
    assert changed == {"pwl_index.json"}
    assert load(vit, stage=2).stage == 2


def test_exporting_again_gives_the_same_bytes(vit, tmp_path):
    folder = tmp_path / "again"
    tiny_model("vit").export(folder)
    assert tree(folder) == tree(vit)
    # Upon itself, from another stage.
    load(folder, stage=3).export(folder)
    assert tree(folder) == tree(vit)


@pytest.mark.slow
def test_exporting_in_another_process_gives_the_same_bytes(odd_net, tmp_path, fresh_env):
    odd_model().export(tmp_path / "here")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.exporting.odd_net import odd_model, registered\n"
        "with registered(): odd_model().export('there')\n"
    )
    done = python(code, fresh_env, tmp_path)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_processor_and_problem_type_go_into_the_index(odd_net, tmp_path):
    model = odd_model()
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path)
    processor = '{"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}'
    (tmp_path / "preprocessor_config.json").write_text(processor)
    load(tmp_path).export(tmp_path)
    index = read_index(tmp_path)
    assert index.problem_type == "multi_label_classification"
    assert index.processor == {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}


# --- Schedules -------------------------------------------------------------------------------------------------------

SCHEDULES = {
    "from the end": ["SSSS", "SSST", "SSTT", "STTT", "TTTT"],
    "two blocks a stage": ["SSSS", "TTSS", "TTTT"],
    "from both ends": ["SSSS", "TSSS", "TSST", "TTST", "TTTT"],
    "at once": ["SSSS", "TTTT"],
}


@pytest.mark.parametrize("masks", SCHEDULES.values(), ids=SCHEDULES)
def test_stages_of_any_schedule_equal_torch(odd_net, tmp_path, masks):
    model = odd_model("plain plain plain plain", "plain plain plain plain", 4)
    model.set_schedule(masks)
    model.export(tmp_path)
    index = read_index(tmp_path)
    assert [mask.mask for mask in index.stages] == masks
    expected = {path for mask in index.stages for path in graphs_of(mask)} | {"teacher/model.onnx"}
    # The last stage is the chain of the blocks, so all of these are there.
    assert index.graphs.keys() == expected
    assert_equals_torch(tmp_path, {1: odd_images(1), 3: odd_images(3)})


@pytest.mark.parametrize("num_stages", [1, 2, 8])
def test_any_number_of_blocks_is_exported(odd_net, tmp_path, num_stages):
    layers = " ".join(["plain"] * 8)
    odd_model(layers, layers, num_stages).export(tmp_path)
    assert len(read_index(tmp_path).graphs) == 1 + num_stages + num_stages
    assert_equals_torch(tmp_path, {2: odd_images()})


def test_one_block_has_a_graph_that_gives_logits(odd_net, tmp_path):
    odd_model(num_stages=1).export(tmp_path)
    index = read_index(tmp_path)
    assert [graph.path for graph in index.graphs_for(1)] == ["onnx/teacher-00001.onnx"]
    (output,) = models_of(tmp_path)["onnx/teacher-00001.onnx"].graph.output
    assert output.name == "logits"


@pytest.mark.parametrize("num_labels", [1, 2])
def test_few_labels_are_no_reason_to_refuse(odd_net, tmp_path, num_labels):
    found = odd_model(num_labels=num_labels).export(tmp_path)
    assert set(found) == {0, 1, 2}
    assert read_index(tmp_path).labels == tuple(f"LABEL_{i}" for i in range(num_labels))


# --- Tracing once ----------------------------------------------------------------------------------------------------


def test_layers_of_equal_structure_are_traced_once(monkeypatch, tmp_path):
    traced = []

    def counting(piece, *rest):
        traced.append(piece.kind[0])
        return known(piece, *rest)

    known = graphs.trace
    monkeypatch.setattr(graphs, "trace", counting)
    tiny_model("vit").export(tmp_path)
    # Eight layers and four, two networks of different widths, three converters.
    assert sorted(traced) == ["converter", "embedder", "embedder", "head", "head", "unit", "unit"]
