"""Stages in any order, from the Hub to the last answer, by torch and by the runtime."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwl_hf import RepositoryError, prefetch, runtime
from pwl_hf.downloading import download_stages
from pwl_hf.modeling.publishing.push import Target, push_folder
from pwl_hf.modeling.publishing.saving import write_schedule
from pwl_hf.modeling.repository.source import Repository
from pwl_hf.modeling.schedule import Schedule
from tests.exporting.traces import traced_once
from tests.once import made_once
from tests.repository.helpers import INDEX, bodies, load, publish, tree
from tests.runtime.helpers import graph_model
from tests.tiny import tiny_images

# Neither has a stage in common with first to last, but for the first block of the second.
ORDERS = {
    "last first": ["SSS", "SST", "STT", "TTT"],
    "from both ends": ["SSS", "TSS", "TST", "TTT"],
}


@pytest.fixture(params=ORDERS, scope="session")
def order(request):
    return ORDERS[request.param]


@pytest.fixture(scope="session")
def folder(order, tmp_path_factory):
    """A repository with BatchNorm statistics of every mixed stage, and graphs of all stages; not to be written to."""

    def make(place):
        model = graph_model("pwl_vgg")
        model.set_schedule(order)
        model.estimate_statistics(tiny_images("pwl_vgg", 8, seed=3), order[1:-1])
        place.mkdir()
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
        (place / "preprocessor_config.json").write_text(json.dumps(processor))
        with traced_once():
            model.export(place, image_size=16)

    return made_once(tmp_path_factory, f"order-{'-'.join(order)}", make)


@pytest.fixture(scope="session")
def expected(order, folder):
    """What the path of each stage's mask answers, all being in memory."""
    whole, images = load(folder, keep_all=True), tiny_images("pwl_vgg", seed=1)
    with torch.no_grad():
        return images, [whole(images, sources=mask).logits.numpy() for mask in order]


@pytest.fixture
def pushed(hub, repo_id, folder):
    push_folder(folder, Target(repo_id))
    return repo_id


def assert_answers(model, images, expected, *, exactly: bool) -> None:
    if isinstance(model, runtime.RuntimeModel):
        found = model.logits(pixel_values=images.numpy())
    else:
        with torch.no_grad():
            found = model(images).logits.numpy()
    if exactly:
        assert np.array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("by", ["torch", "runtime"])
def test_stages_go_up_and_down(folder, order, expected, by):
    images, answers = expected
    model = load(folder) if by == "torch" else runtime.load(folder, threads=1)
    for stage in [*range(len(order)), *reversed(range(len(order)))]:
        model.set_stage(stage)
        assert (model.stage, model.sources) == (stage, order[stage])
        assert_answers(model, images, answers[stage], exactly=by == "torch")


@pytest.mark.parametrize("by", ["torch", "runtime"])
def test_stages_stream_from_the_hub(pushed, order, expected, by, tmp_path):
    images, answers = expected
    options = {"cache_dir": tmp_path / "cache"}
    model = load(pushed, **options) if by == "torch" else runtime.load(pushed, threads=1, **options)
    assert_answers(model, images, answers[0], exactly=by == "torch")
    seen = []
    with model.stream_stages(on_stage=lambda grown, stage: seen.append((stage, grown.sources))) as stream:
        stream.wait(60)
    assert stream.exception is None
    assert seen == list(enumerate(order))[1:]
    assert_answers(model, images, answers[-1], exactly=by == "torch")


@pytest.mark.parametrize("by", ["torch", "runtime"])
def test_any_stage_downloaded_before_needs_no_network(hub, pushed, order, expected, by, tmp_path):
    images, answers = expected
    for stage in range(len(order)):
        place, _, _ = download_stages(pushed, stage, local_dir=tmp_path / str(stage), cache_dir=tmp_path / "cache")
        with hub.record() as requests:
            for k in range(stage + 1):
                model = load(place, stage=k) if by == "torch" else runtime.load(place, stage=k, threads=1)
                assert_answers(model, images, answers[k], exactly=by == "torch")
        assert not requests


def test_a_stage_prefetched_is_fetched_once(hub, pushed, order, tmp_path):
    for stage in range(len(order)):
        cache = tmp_path / str(stage)
        prefetch(pushed, stage=stage, cache_dir=cache).wait(60)
        with hub.record() as requests:
            assert load(pushed, stage=stage, cache_dir=cache).sources == order[stage]
            assert runtime.load(pushed, stage=stage, cache_dir=cache, threads=1).sources == order[stage]
        assert not [path for path in bodies(requests) if path.endswith((".safetensors", ".onnx"))]


def test_saves_and_pushes_from_any_stage_are_the_same(hub, pushed, folder, order, tmp_path):
    for stage in range(len(order)):
        model = load(pushed, stage=stage, cache_dir=tmp_path / "cache")
        model.save_pretrained(tmp_path / str(stage))
        own = {path for path in tree(folder) if path.endswith((".safetensors", ".onnx", "pwl_index.json"))}
        assert all((tmp_path / str(stage) / path).read_bytes() == (folder / path).read_bytes() for path in own)
        model.push_to_hub(f"{pushed}-{stage}")
        there = hub.store.files(f"{pushed}-{stage}")
        assert {path: there[path] for path in own} == {path: (folder / path).read_bytes() for path in own}


def test_graphs_of_another_order_are_no_more_and_the_runtime_says_what_to_do(folder, order, tmp_path):
    place = shutil.copytree(folder, tmp_path / "later")
    write_schedule(place, Schedule.of(order))
    assert tree(place) == tree(folder)
    write_schedule(place, Schedule.prefixes(3))
    assert not any((place / "onnx").iterdir())
    with pytest.raises(RepositoryError, match="pwl-hf export"):
        runtime.load(place, threads=1)
    # Such graphs, if something else keeps them.
    shutil.copytree(folder / "onnx", place / "onnx", dirs_exist_ok=True)
    manifest = replace(Repository.open(place).manifest(), attachments=Repository.open(folder).manifest().attachments)
    (place / INDEX).write_text(manifest.to_json())
    with pytest.raises(RepositoryError, match=r"has the stages .* export it again with `pwl-hf export`"):
        runtime.load(place, threads=1)


def test_bytes_of_a_stage_are_fetched_with_it(hub, repo_id, folder, order, tmp_path):
    publish(hub, repo_id, folder)
    model = load(repo_id, cache_dir=tmp_path / "cache")
    for stage in Repository.open(folder).manifest().stages[1:]:
        with hub.record() as requests:
            model.load_next_stage()
        assert sorted(bodies(requests)) == sorted(entry.path for entry in stage.files)
