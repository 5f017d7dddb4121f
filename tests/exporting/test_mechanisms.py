"""What families and dtypes do otherwise: statistics of masks, grids and windows, an embedder that is nothing, casts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from pwl_hf import SaveError
from tests.exporting.helpers import (
    TOLERANCE,
    assert_equals_torch,
    difference,
    in_reverse,
    locations,
    models_of,
    read_index,
    run_stage,
    sessions,
    small_images,
    small_model,
    torch_logits,
)
from tests.exporting.odd_net import odd_images, odd_model
from tests.repository.helpers import edit_bytes, load
from tests.tiny import EACH_FAMILY, WITH_BATCH_NORM, tiny_images, tiny_model

DTYPES = {"bfloat16": onnx.TensorProto.BFLOAT16, "float16": onnx.TensorProto.FLOAT16}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "resnet"])
def test_stages_of_a_family_equal_torch(exported, family):
    assert_equals_torch(exported(family), {n: small_images(family, n) for n in (1, 2, 5)})


def test_statistics_of_a_mask_are_those_of_its_file(exported, tmp_path):
    folder = exported("pwl_vgg")
    tail = read_index(folder).graphs["onnx/tail-TS.onnx"]
    own = load_file(folder / "statistics" / "TS.safetensors")
    assert set(tail.tensors["statistics/TS.safetensors"]) == own.keys()
    # No running statistic of the student's stands in it besides.
    assert not [name for name in tail.tensors["model.safetensors"] if "running" in name]
    images = small_images("pwl_vgg")
    with torch.no_grad():
        plain = small_model("pwl_vgg")(images, sources="TS").logits
    assert difference(run_stage(folder, 1, images), plain) > 1e-3


def test_an_embedder_that_does_nothing_is_no_node(exported):
    folder = exported("pwl_vgg")
    assert_equals_torch(folder, {n: small_images("pwl_vgg", n) for n in (1, 3)})
    for path in ("onnx/student.onnx", "onnx/teacher-00001.onnx", "teacher/model.onnx"):
        model = models_of(folder)[path]
        (given,) = model.graph.input
        assert given.name == "pixel_values"
        first = next(node for node in model.graph.node if "pixel_values" in node.input)
        assert first.op_type == "Conv"


def test_a_tail_takes_features_and_no_images(vit):
    for path, model in models_of(vit).items():
        names = [value.name for value in model.graph.input]
        begins = path in ("teacher/model.onnx", "onnx/student.onnx", "onnx/teacher-00001.onnx")
        assert names == (["pixel_values"] if begins else ["features_in"]), path
        ends = path in ("onnx/teacher-00001.onnx", "onnx/teacher-00002.onnx", "onnx/teacher-00003.onnx")
        assert [value.name for value in model.graph.output] == (["features"] if ends else ["logits"]), path


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_half_the_width_stay_what_they_are_and_are_cast_in_the_graph(odd_net, tmp_path, dtype):
    folder = tmp_path / dtype
    odd_model().to(getattr(torch, dtype)).export(folder)
    for path, model in models_of(folder).items():
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert {tensor.data_type for tensor in external} == {DTYPES[dtype]}
        casts = {node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        assert casts == {tensor.name for tensor in external}, path
    assert_equals_torch(folder, {n: odd_images(n) for n in (1, 2, 5)})
    # It is the arithmetic of float32 over the stored values.
    expected = torch_logits(folder, 2, odd_images())
    assert difference(run_stage(folder, 2, odd_images()), expected) < TOLERANCE
    assert load(folder).dtype == getattr(torch, dtype)


def test_float64_is_cast_too(odd_net, tmp_path):
    odd_model().double().export(tmp_path)
    types = {t.data_type for model in models_of(tmp_path).values() for t in model.graph.initializer if t.external_data}
    assert types == {onnx.TensorProto.DOUBLE}
    assert_equals_torch(tmp_path, {2: odd_images()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_numbers_of_a_file_stay_whole(odd_net, tmp_path, dtype):
    odd_model("plain index").to(getattr(torch, dtype)).export(tmp_path)
    model = models_of(tmp_path)["onnx/teacher-00002.onnx"]
    (order,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith(".order"))
    assert order.data_type == onnx.TensorProto.INT64
    assert order.external_data
    assert_equals_torch(tmp_path, {2: odd_images()})


def test_graphs_follow_the_files_that_are_there(odd_net, tmp_path):
    """Another writer may have put the tensors of a file into another order."""
    odd_model().save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    edit_bytes(tmp_path, "model.safetensors", in_reverse)
    assert len(before) <= len((tmp_path / "model.safetensors").read_bytes())
    load(tmp_path).export(tmp_path)
    assert_equals_torch(tmp_path, {2: odd_images()})


def test_not_a_number_is_a_difference(odd_net, tmp_path):
    model = odd_model()
    with torch.no_grad():
        model.student.classifier.weight[0, 0] = float("nan")
    with pytest.raises((SaveError, ValueError), match=r"(?i)nan|not finite|finite"):
        model.export(tmp_path)
    assert not list(tmp_path.rglob("*.onnx"))


def test_sessions_of_a_stage_share_the_blocks_of_others(vit):
    index = read_index(vit)
    for stage in range(1, 5):
        names = [graph.path for graph in index.graphs_for(stage)]
        assert names[:stage] == [f"onnx/teacher-{k:05d}.onnx" for k in range(1, stage + 1)]
    images = {"pixel_values": small_images("vit").numpy()}
    first, *_ = sessions(vit, 1)
    again, *_ = sessions(vit, 3)
    assert np.array_equal(first(None, images), again(None, images))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_family_in_every_dtype(tmp_path: Path, family: str, dtype: str) -> None:
    model = tiny_model(family)
    if family in WITH_BATCH_NORM:
        for mask in ("TSSS", "TTSS", "TTTS"):
            model.estimate_statistics(tiny_images(family, 8), mask)
    size = tiny_images(family).shape[-1]
    model.to(getattr(torch, dtype)).export(tmp_path, image_size=size)
    assert_equals_torch(tmp_path, {n: tiny_images(family, n) for n in (1, 2, 5)})
    for found in models_of(tmp_path).values():
        assert all(t.ByteSize() < 1000 for t in found.graph.initializer if t.name not in locations(found))
