"""The teacher's graph opens in plain onnxruntime where it lies, and says what torch and its blocks say."""

from __future__ import annotations

import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForImageClassification

from pwl_hf.modeling.repository.source import Repository
from tests.exporting.helpers import (
    TOLERANCE,
    assert_equals_torch,
    difference,
    plain_session,
    read_index,
    run_stage,
    small_images,
)
from tests.repository.helpers import publish, tree

BATCHES = (1, 2, 5)


def test_every_stage_equals_torch_at_every_batch(vit):
    assert_equals_torch(vit, {n: small_images("vit", n) for n in BATCHES})


@pytest.mark.parametrize("n", BATCHES)
def test_teachers_graph_equals_its_checkpoint_in_transformers(vit, n):
    images = small_images("vit", n)
    (found,) = plain_session(vit / "teacher" / "model.onnx").run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = AutoModelForImageClassification.from_pretrained(vit, subfolder="teacher")(images).logits
    assert difference(found, expected) < TOLERANCE
    assert found.tobytes() == run_stage(vit, 4, images).tobytes()


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_chain_equals_the_whole_to_the_bit_however_it_is_optimised(vit, level):
    images = small_images("vit", 3).numpy()

    def run(path, feeds):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        if path.startswith("teacher/"):
            return onnxruntime.InferenceSession(str(vit / path), options).run(None, feeds)[0]
        # Locations in onnx/ are relative to the repository's root.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(vit))
        return onnxruntime.InferenceSession((vit / path).read_bytes(), options).run(None, feeds)[0]

    whole = run("teacher/model.onnx", {"pixel_values": images})
    feeds = {"pixel_values": images}
    for graph in read_index(vit).graphs_for(4):
        found = run(graph.path, feeds)
        feeds = {"features_in": found}
    assert found.tobytes() == whole.tobytes()


def test_teachers_graph_opens_over_the_links_of_a_cache_without_a_copy(hub, repo_id, vit, tmp_path):
    publish(hub, repo_id, vit)
    repository = Repository.open(repo_id, cache_dir=tmp_path / "cache")
    manifest = repository.manifest()
    files = repository.fetch_verified([*manifest.files, *manifest.attachments])
    graph = files["teacher/model.onnx"]
    assert graph.is_symlink()
    assert all(path.is_symlink() for path in files.values())
    before = tree(tmp_path / "cache").keys()
    images = small_images("vit").numpy()
    (found,) = plain_session(graph).run(None, {"pixel_values": images})
    (expected,) = plain_session(vit / "teacher" / "model.onnx").run(None, {"pixel_values": images})
    assert np.array_equal(found, expected)
    assert tree(tmp_path / "cache").keys() == before


def test_it_reads_the_shards_that_lie_beside_it(vit, tmp_path):
    # Nothing but the teacher's folder, which is a checkpoint of transformers with a graph.
    folder = shutil.copytree(vit / "teacher", tmp_path / "teacher")
    images = small_images("vit").numpy()
    (before,) = plain_session(folder / "model.onnx").run(None, {"pixel_values": images})
    shard = folder / "model-00004-of-00004.safetensors"
    content = bytearray(shard.read_bytes())
    content[-4:] = b"\x00\x00\x80\x3f"
    shard.write_bytes(content)
    (after,) = plain_session(folder / "model.onnx").run(None, {"pixel_values": images})
    assert not np.array_equal(before, after)
    shard.unlink()
    with pytest.raises(Exception, match=shard.name):
        plain_session(folder / "model.onnx")
