"""Blocks in low precision, and refined ones, in the runtime: the blocks' own graphs over other tensors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from pwl_hf import PWLForImageClassification, RepositoryError, RetryPolicy, runtime
from pwl_hf.modeling.publishing.push import Target
from pwl_hf.quantising import quantise_repository
from tests.exporting.traces import traced_once
from tests.hub import Fault
from tests.once import made_once
from tests.repository.helpers import bodies, publish
from tests.tiny import tiny_images

LADDER = ("SSS", "QSS", "QQS", "QQQ", "TQQ", "TTQ", "TTT")


@pytest.fixture(scope="session", params=["vit", "pwl_vgg"])
def with_tier(request, exported, tmp_path_factory):
    """A folder with graphs and a tier that was added to it, not to be written to."""
    family = request.param

    def make(folder):
        quantise_repository(str(exported(family)), folder, target=Target("none"))

    return family, made_once(tmp_path_factory, f"runtime-tier-{family}", make)


@pytest.fixture(scope="session")
def by_torch(with_tier):
    family, folder = with_tier
    images = tiny_images(family, seed=1)
    with torch.no_grad():
        return images.numpy(), [
            PWLForImageClassification.from_pretrained(folder, stage=stage)(images).logits.numpy() for stage in range(7)
        ]


def close(one, other):
    return np.abs(one - other).max() < 1e-4 * max(1.0, np.abs(other).max())


def test_graphs_stay_right_with_a_tier(with_tier, exported):
    family, folder = with_tier
    assert (folder / "onnx" / "index.json").read_bytes() == (exported(family) / "onnx" / "index.json").read_bytes()


def test_every_rung_is_what_torch_says(with_tier, by_torch):
    pixels, expected = by_torch
    model = runtime.load(with_tier[1], threads=1)
    assert model.schedule == LADDER
    for stage in range(7):
        if stage:
            model.load_next_stage()
        found = model.logits(pixel_values=pixels)
        assert close(found, expected[stage])
        again = runtime.load(with_tier[1], stage=stage, threads=1).logits(pixel_values=pixels)
        assert np.array_equal(found, again)
    for stage in (4, 2, 0):
        model.set_stage(stage)
        assert close(model.logits(pixel_values=pixels), expected[stage])


def test_refined_blocks_answer_as_mapped_ones_do_bit_for_bit(hub, repo_id, with_tier, by_torch, tmp_path):
    publish(hub, repo_id, with_tier[1])
    model = runtime.load(repo_id, cache_dir=tmp_path, threads=1)
    model.logits(pixel_values=by_torch[0])
    seen = []
    with hub.record() as requests, model.stream_stages(on_stage=lambda m, stage: seen.append(m.sources)):
        pass
    assert tuple(seen) == LADDER[1:]
    assert not [path for path in bodies(requests) if path.startswith("teacher/")]
    mapped = runtime.load(with_tier[1], stage="teacher", threads=1)
    assert np.array_equal(model.logits(pixel_values=by_torch[0]), mapped.logits(pixel_values=by_torch[0]))
    copy = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copy.logits(pixel_values=by_torch[0]), mapped.logits(pixel_values=by_torch[0]))


def test_a_folder_with_its_shards_goes_straight_to_the_teacher(with_tier):
    model, seen = runtime.load(with_tier[1], threads=1), []
    with model.stream_stages(on_stage=lambda _, stage: seen.append(stage)):
        pass
    assert seen == [6]


def test_a_fault_of_a_refinement_ends_the_stream_at_its_rung(hub, repo_id, with_tier, by_torch, tmp_path):
    publish(hub, repo_id, with_tier[1])
    model = runtime.load(repo_id, cache_dir=tmp_path, threads=1, retry=RetryPolicy(tries=2, first_wait=0))
    with hub.faulty(Fault("corrupt", path="refinements/model-00002", times=None)):
        stream = model.stream_stages()
        assert stream.wait(60)
    assert isinstance(stream.exception, RepositoryError)
    assert model.sources == "TQQ"
    assert close(model.logits(pixel_values=by_torch[0]), by_torch[1][4])


def test_a_model_with_a_tier_is_exported(with_tier, tmp_path, by_torch):
    family, folder = with_tier
    if family != "vit":
        pytest.skip("one family shows it")
    model = PWLForImageClassification.from_pretrained(folder)
    with traced_once():
        made = model.export(tmp_path / "again", image_size=16)
    assert sorted(made) == [0, 1, 2, 3]  # the graphs' own stages
    found = runtime.load(tmp_path / "again", stage=2, threads=1)
    assert close(found.logits(pixel_values=by_torch[0]), by_torch[1][2])
